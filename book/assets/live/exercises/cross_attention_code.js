"use strict";
// Chapter 8: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise, randn, gauss, tensor, numbersOf, apart, few, attentionByHand, python } = mllama;

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
