"use strict";
// Chapter 6: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise, randn, tensor, numbersOf, apart, few, attentionByHand, python } = mllama;

  codeExercise("patchify-and-back", ["patchify", "unpatchify"], (patchify, unpatchify) => {
    for (const [images, channels, side, size] of [[2, 3, 28, 7], [1, 3, 12, 2], [3, 1, 20, 10]]) {
      const pixels = randn(images, channels, side, side), across = side / size, inner = channels * size ** 2;
      const patches = patchify(pixels, BigInt(size));
      const told = `for [${pixels.shape.join(", ")}] and patches of ${size}`;
      const got = numbersOf(patches, [images, across ** 2, inner], told);
      const weight = randn(channels, size, size).numbers(), data = pixels.numbers();
      let worst = 0;  // one filter of a convolution that steps by a patch
      for (let n = 0; n < images; n++) for (let p = 0; p < across ** 2; p++) {
        let wanted = 0, found = 0;
        for (let c = 0, i = 0; c < channels; c++) for (let y = 0; y < size; y++) for (let x = 0; x < size; x++, i++) {
          const row = Math.floor(p / across) * size + y, column = p % across * size + x;
          wanted += weight[i] * data[((n * channels + c) * side + row) * side + column];
          found += weight[i] * got[(n * across ** 2 + p) * inner + i];
        }
        worst = Math.max(worst, Math.abs(wanted - found));
      }
      expect(worst < 1e-3, `times a weight it is ${few(worst)} from the convolution`);
      const back = numbersOf(unpatchify(patches, BigInt(channels), BigInt(size)), pixels.shape, "on the way back");
      expect(apart(back, data) === 0, "the way back gives other pixels");
    }
  });

  codeExercise("one-register", ["with_register"], attend => {
    const [query, key, value, register, content] = [randn(6, 8), randn(5, 8), randn(5, 8), randn(8), randn(8)];
    const told = "for 6 queries of 8 numbers";
    for (const count of [1, 2, 28, 500]) {
      const copies = (x, one) => Float64Array.from({ length: x.size + 8 * count }, (_, i) =>
        i < x.size ? x.numbers()[i] : one.numbers()[i % 8]);
      const { output } = attentionByHand(query.numbers(), copies(key, register), copies(value, content), 8, 1, 1);
      const got = numbersOf(attend(query, key, value, register, content, BigInt(count)), [6, 8], told);
      const off = apart(got, output);
      expect(off < 1e-4, `${few(off)} from attention with ${count} copies of the key`);
    }
    const large = x => tensor(x.shape, x.numbers().map(number => 500 * number));  // e to such powers is no double
    const far = numbersOf(attend(large(query), large(key), value, large(register), content, 10000n), [6, 8], told);
    expect(python.made.largest < 10000, "somewhere there are as many numbers as copies");
    expect(far.every(Number.isFinite), "large scores give infinities or nan");
  });
})();
