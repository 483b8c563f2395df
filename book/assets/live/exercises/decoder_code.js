"use strict";
// Chapter 4: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise, draw, python } = mllama;

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
