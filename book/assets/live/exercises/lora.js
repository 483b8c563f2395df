"use strict";
// Chapter 12: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect, codeExercise, randn, apart, few, python, python: { matmul } } = mllama;

  exercise("rank-for-a-file", answer => {
    const bytes = 4 * 32 * (4096 + 4096 + 4096 + 1024);  // at rank 1: queries and values, in 32 layers
    expect(Number.isInteger(answer), "a rank is a whole number");
    const size = answer * bytes / 2 ** 20;
    expect(size <= 100, `at that rank the file has ${size.toFixed(1)} MiB`);
    expect((answer + 1) * bytes > 100 * 2 ** 20, "a higher rank fits as well");
  });

  exercise("first-steps", answer => {
    expect("cd".includes(answer), "what is a product one of whose factors is 0?");
    expect(answer === "c", "write both gradients down: which factor does each go through?");
  });

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
