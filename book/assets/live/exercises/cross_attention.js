"use strict";
// Chapter 8: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect,
    codeExercise, randn, gauss, tensor, numbersOf, apart, few, attentionByHand, python } = mllama;

  exercise("break-even-answer", answer => {
    const width = 4096, inner = 14336, keys = 2 * width * 1024, rest = 2 * width * width + 3 * width * inner;
    const pair = 4 * width, text = 100, vision = 4 * 1601, tokens = 576;
    const beside = 32 * (2 * tokens * (rest + keys) + (tokens * (tokens + 1) / 2 + text * tokens) * pair);
    const crossed = 8 * (2 * vision * keys + text * vision * pair + 2 * text * rest);
    const added = 8 * (vision * pair + 2 * rest), looked = 32 * tokens * pair;
    const near = value => Math.abs(answer - value) <= 0.03 * value;
    expect(!near((beside - crossed) / added), "with the image in the text, a token of the answer looks at it as well");
    expect(!near(beside / (added - looked)), "the crossed image is not free before the answer either");
    expect(near((beside - crossed) / (added - looked)), "after so many tokens the two have not done the same work");
  });

  exercise("keys-kept", answer => {
    expect("abcde".includes(answer), "the answer is one of the letters");
    expect(answer === "d", "tried, and the keys come out as they were");
  });

  codeExercise("nothing-to-see", ["attend"], attend => {
    const [rows, keys, size] = [6, 9, 8];
    const isBlind = row => row === 1 || row === 4, blind = i => isBlind(Math.floor(i / size));
    const drawn = i => !isBlind(Math.floor(i / keys)) && (i % keys === 0 || Math.random() < 0.5);
    const sees = tensor([rows, keys], i => Number(drawn(i)), "bool"), may = sees.numbers();
    for (const scale of [1, 300]) {  // e to the power of such scores is no double
      const [query, key] = [rows, keys].map(n => tensor([n, size], () => scale * gauss())), value = randn(keys, size);
      const large = scale === 1 ? "" : ", with large scores";
      const got = numbersOf(attend(query, key, value, sees), [rows, size], `for queries of [${rows}, ${size}]`);
      const { nan } = python.made;
      expect(got.every(Number.isFinite), `the output is not finite${large}`);
      expect(got.every((number, i) => !blind(i) || number === 0), "a row that sees nothing gets something");
      const { output } = attentionByHand(query.numbers(), key.numbers(), value.numbers(), size, 1, 1,
        (t, s) => isBlind(t) || may[t * keys + s] === 1);
      const off = apart(got.filter((_, i) => !blind(i)), output.filter((_, i) => !blind(i)));
      expect(off < 1e-4, `rows that see something are ${few(off)} off${large}`);
      expect(!nan, `a NaN is made on the way${large}, and comes back in the gradient`);
    }
  });
})();
