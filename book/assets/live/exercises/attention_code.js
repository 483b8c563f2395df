"use strict";
// Chapter 3: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise, randn, tensor, numbersOf, apart, few, linear, attentionByHand, python } = mllama;

  codeExercise("one-head", ["one_head"], head => {
    for (const [tokens, width] of [[5, 8], [7, 16], [1, 8]]) {
      const size = width / 2, x = randn(2, tokens, width);
      const matrices = [randn(size, width), randn(size, width), randn(size, width), randn(width, size)];
      const [q, k, v, o] = matrices.map(matrix => matrix.numbers());
      const got = numbersOf(head(x, ...matrices), x.shape, `for x of [${x.shape.join(", ")}]`);
      const wanted = [0, 1].flatMap(row => {
        const own = x.numbers().subarray(row * tokens * width, (row + 1) * tokens * width);
        const parts = [q, k, v].map(matrix => linear(own, matrix, width));
        const { output } = attentionByHand(...parts, size, 1, 1, (t, s) => s <= t);
        return [...linear(output, o, size)];
      });
      if (tokens > 1) {
        const isLast = i => Math.floor(i / width) % tokens === tokens - 1;
        const later = tensor(x.shape, x.numbers().map((number, i) => isLast(i) ? number + 1 : number));
        const again = numbersOf(head(later, ...matrices), x.shape, "");
        const before = numbers => numbers.filter((_, i) => !isLast(i));
        expect(apart(before(again), before(got)) < 1e-4, "a change of the last token changes what comes before it");
      }
      const off = apart(got, wanted);
      expect(off < 1e-3, `with ${tokens} tokens it is ${few(off)} from SelfAttention`);
    }
  });

  codeExercise("blockwise", ["blockwise"], attend => {
    const [query, key, value] = [randn(64, 4), randn(64, 4), randn(64, 4)];
    const { output } = attentionByHand(query.numbers(), key.numbers(), value.numbers(), 4, 1, 1);
    for (const block of [16, 10]) {
      const got = numbersOf(attend(query, key, value, BigInt(block)), [64, 4], "for 64 queries of 4 numbers");
      const { largest } = python.made, off = apart(got, output);
      expect(off < 1e-4, `with blocks of ${block} keys it is ${few(off)} off`);
      expect(largest < 64 * 64, "somewhere there are scores of all keys at once");
    }
    const large = x => tensor([64, 4], x.numbers().map(number => 500 * number));  // e to such powers is no double
    const far = numbersOf(attend(large(query), large(key), value, 16n), [64, 4], "for 64 queries");
    expect(far.every(Number.isFinite), "large scores give infinities or nan");
  });
})();
