"use strict";
// Chapter 14: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("bytes-of-a-parameter", answer => {
    const number = 4, gradient = 4, averages = 2 * 4;
    const all = number + gradient + averages;
    expect(answer !== number, "what does a step need besides the number itself?");
    expect(answer !== number + gradient, "what does AdamW remember?");
    expect(answer !== all - 4, "how many averages does AdamW keep?");
    expect(answer === all, "number, gradient, optimiser: in which precision is each?");
  });

  exercise("price-of-a-rank", answer => {
    const q = 4096 + 4096, k = 4096 + 1024, mlp = 4096 + 14336;
    const layer = 2 * q + 2 * k + 3 * mlp;  // of self- and of cross-attention alike
    const gib = 64 * 40 * layer / 2 ** 30;
    expect(Math.abs(answer - 4 * gib) > 0.06, "these are the matrices alone");
    expect(Math.abs(answer - 2 * gib) > 0.06, "is this of rank 64, and all of it?");
    expect(Math.abs(answer - 16 * gib) < 0.06, "what grows with the rank, and how fast?");
  });

  exercise("way-back", answer => {
    expect(answer === "d", "what would a gradient there be for? Count two depths");
  });
})();
