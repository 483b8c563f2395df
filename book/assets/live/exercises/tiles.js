"use strict";
// Chapter 5: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("letters-of-a-scan", answer => {
    const height = 3508, width = 2480, letters = 30, tile = 560;
    const near = wrong => Math.abs(answer - wrong) < 0.1;
    expect(!near(letters), "does the page fit without being shrunk?");
    expect(!near(letters * tile / height), "how many tiles may a picture have?");
    expect(!near(letters * 2 * tile / width), "do both sides fit now?");
    expect(!near(letters * 4 * tile / height), "how wide is that canvas?");
    expect(near(letters * 2 * tile / height),  // on 2 x 2 tiles
      "first the canvas, then the factor by which the page shrinks");
  });

  exercise("exact-zero", answer => {
    expect(["a", "b", "c", "d"].includes(answer), "the answer is one of the four letters");
    expect(answer === "d", "try a picture with every level from 0 to 255");
  });
})();
