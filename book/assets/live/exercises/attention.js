"use strict";
// Chapter 3: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("cache-bytes", answer => {
    const numbers = 80 * 8 * 128;  // of the keys of one token, in all layers
    expect(answer !== numbers * 2, "what is kept besides the keys?");
    expect(answer !== numbers * 2 * 2 * 8, "who shares a key here?");
    expect(answer === numbers * 2 * 2, "layers, heads, numbers a head: what is missing?");
  });
})();
