"use strict";
// Chapter 11: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise, draw, python } = mllama;

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
