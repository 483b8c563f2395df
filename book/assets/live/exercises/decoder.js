"use strict";
// Chapter 4: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect, codeExercise, draw, python } = mllama;

  exercise("untrained-and-tied", answer => {
    expect(["a", "b", "c", "d"].includes(answer), "the answer is one of the four letters");
    expect(answer === "c", "a model made this way does something else: build a small one");
  });

  exercise("rows-for-one-fetch", answer => {
    const rows = 989e12 / 2 / (3.35e12 / 2);  // operations and bytes of a weight are 2 each
    const near = wrong => Math.abs(answer - wrong) <= 1;
    expect(!near(rows / 2), "how many bytes has a weight?");
    expect(!near(2 * rows), "how many operations is a weight used for, in one row?");
    expect(Math.floor(rows) <= answer && answer <= Math.ceil(rows),
      "set the seconds for the bytes of one weight beside those for its operations");
  });

  codeExercise("count-parameters", ["count_parameters"], count => {
    const some = (...numbers) => numbers[draw(0, numbers.length)];
    for (let trial = 0; trial < 12; trial++) {
      const config = {
        vocab_size: some(300, 128256), num_extra_embeddings: some(0, 8), hidden_size: some(64, 4096),
        num_attention_heads: some(4, 6, 32), num_key_value_heads: some(1, 2), head_dim: some(8, 80),
        intermediate_size: some(96, 14336), num_hidden_layers: trial < 3 ? 0 : some(1, 3, 32),
        tie_word_embeddings: trial % 3 === 0,
      };
      const width = config.hidden_size, every = { layer: [], model: [[width]] };
      // The shape of each tensor, as the modules hold them.
      for (const heads of ["num_attention_heads", "num_key_value_heads"])
        for (let twice = 0; twice < 2; twice++) every.layer.push([config[heads] * config.head_dim, width]);
      for (let part = 0; part < 3; part++) every.layer.push([config.intermediate_size, width]);
      every.layer.push([width], [width]);
      every.model.push([config.vocab_size + config.num_extra_embeddings, width]);
      if (!config.tie_word_embeddings) every.model.push([config.vocab_size, width]);
      const size = shapes => shapes.reduce((sum, shape) => sum + shape.reduce((a, b) => a * b), 0);
      const wanted = size(every.model) + config.num_hidden_layers * size(every.layer);
      const asPython = value => typeof value === "number" ? BigInt(value) : value;
      const given = Object.fromEntries(Object.entries(config).map(([name, value]) => [name, asPython(value)]));
      const off = Number(count(python.thing("TextConfig", given))) - wanted;
      const told = Object.entries(config).map(([name, value]) => `${name} ${value}`).join(", ");
      expect(off === 0, `${Math.abs(off).toLocaleString("en")} too ${off > 0 ? "many" : "few"}, with ${told}`);
    }
  });
})();
