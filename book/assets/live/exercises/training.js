"use strict";
// Chapter 11: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect, codeExercise, draw, python } = mllama;

  exercise("gates-recall", answer => {
    // Gradients of (tanh(g) f - 1)² in two steps from g = 0, f = .7.
    let g = 0, f = 0.7;
    const moving = [0, 1].map(() => {
      const off = 2 * (Math.tanh(g) * f - 1);
      const [dg, df] = [off * f * (1 - Math.tanh(g) ** 2), off * Math.tanh(g)];
      [g, f] = [g - 0.1 * dg, f - 0.1 * df];
      return [dg !== 0, df !== 0];
    });
    const told = {
      a: [[true, true], [true, true]], b: [[true, false], [true, true]],
      c: [[false, true], [true, true]], d: [[true, false], [true, false]],
    }[answer];
    expect(JSON.stringify(told) === JSON.stringify(moving), "multiply by tanh(0), then by tanh of a small number");
  });

  exercise("guess-count", answer => {
    const pictures = [...[1, 2, 3, 4].flatMap(n => Array(7).fill(n)), 1, 1, 2, 2];
    const best = Math.max(...[1, 2, 3, 4].map(n => pictures.filter(m => m === n).length / pictures.length));
    expect(!(Math.abs(answer - 1 / 4) <= 1e-3), "some pictures never have four things");
    expect(Math.abs(answer - best) < 1e-3, "count it out for 32 pictures");
  });

  exercise("enough-questions", answer => {
    expect(Number.isInteger(answer) && answer > 0, "it is a number of questions");
    const wide = count => {  // of Wilson's interval
      const z = 1.96, share = Math.round(0.95 * count) / count;
      const spread = Math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2);
      return 2 * z * spread / (1 + z * z / count);
    };
    expect(wide(answer) <= 0.02 * 1.005, `it is still ${wide(answer).toFixed(4)} wide`);
    expect(wide(0.93 * answer) > 0.02, "far fewer would do");
  });

  codeExercise("which-labels", ["labels_of"], labelsOf => {
    // A header of three tokens, as in the chat format, and an end; what is between them is drawn.
    const [begin, user, assistant, close, end] = [301, 302, 303, 304, 305];
    const header = role => [begin, role, close], ids = numbers => numbers.map(BigInt);
    const words = () => Array.from({ length: draw(1, 5) }, () => draw(0, 300));
    const special = { "<|eot_id|>": end, "<|start_header_id|>": begin, "<|end_header_id|>": close };
    const tokenizer = python.thing("Tokenizer", {
      special: python.dict(Object.entries(special).map(([name, id]) => [name, BigInt(id)])),
      encode_header: ([role]) => ids(header(role === "assistant" ? assistant : user)),
    });
    for (const turns of [1, 2, 3]) {
      const tokens = [300], wanted = [-100];
      for (let turn = 0; turn < turns; turn++) {
        const asked = [...header(user), ...words(), end, ...header(assistant)], told = [...words(), end];
        tokens.push(...asked, ...told);
        wanted.push(...asked.map(() => -100), ...told.map(() => -100));
        told.forEach((token, i) => { wanted[tokens.length - told.length + i - 1] = token; });
      }
      const result = labelsOf(ids(tokens), tokenizer);
      const got = (result instanceof python.NDArray ? [...result.numbers()] : [...python.iterate(result)]).map(Number);
      expect(got.length === tokens.length, `${tokens.length} tokens get ${got.length} labels`);
      expect(got.includes(end), "nothing teaches it to stop");
      const shifted = [-100, ...wanted.slice(0, -1)];
      expect(got.some((label, i) => label !== shifted[i]),
        "a label stands where its own token is, and not where it is to be predicted");
      const off = got.filter((label, i) => label !== wanted[i]).length;
      expect(off === 0, `with ${turns} questions, ${off} of ${tokens.length} labels differ`);
    }
  });
})();
