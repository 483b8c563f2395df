"use strict";
// Chapter 12: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise, randn, apart, few, python, python: { matmul } } = mllama;

  codeExercise("merge-two", ["one_pair"], onePair => {
    const [ins, outs] = [9, 7];
    for (const settings of [[[2, 4], [2, 4]], [[2, 2], [3, 1]], [[1, 8], [2, 3]]]) {
      const pairs = settings.map(([rank, alpha]) => (
        { A: randn(rank, ins), B: randn(outs, rank), rank: BigInt(rank), scale: alpha / rank }));
      const result = onePair(...pairs.map(pair => python.thing("LowRank", pair)));
      const isMatrix = one => one instanceof python.NDArray && one.ndim === 2;
      expect(Array.isArray(result) && result.length === 2 && result.every(isMatrix), "it returns no pair of matrices");
      const [a, b] = result, told = settings.map(([rank, alpha]) => `rank ${rank} and alpha ${alpha}`).join(", ");
      const fits = a.shape[1] === ins && b.shape[0] === outs && a.shape[0] === b.shape[1];
      expect(fits, `for ${ins} inputs and ${outs} outputs A is [${a.shape.join(", ")}] and B [${b.shape.join(", ")}]`);
      const product = (left, right) => matmul(left, right).numbers();
      const sum = new Float64Array(outs * ins);
      for (const { A, B, scale } of pairs) product(B, A).forEach((number, i) => { sum[i] += scale * number; });
      const off = apart(product(b, a), sum);
      expect(off < 1e-4, `for pairs of ${told} it is ${few(off)} off`);
      const most = settings[0][0] + settings[1][0];
      expect(a.shape[0] <= most, `for pairs of ${told} its rank is ${a.shape[0]}: less is enough`);
    }
  });
})();
