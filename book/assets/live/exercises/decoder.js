"use strict";
// Chapter 4: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("untrained-and-tied", answer => {
    expect(["a", "b", "c", "d"].includes(answer), "the answer is one of the four letters");
    expect(answer === "c", "a model made this way does something else: build a small one");
  });

  exercise("rows-for-one-fetch", answer => {
    const rows = 989e12 / 2 / (3.35e12 / 2);  // operations and bytes of a weight are 2 each
    const near = wrong => Math.abs(answer - wrong) <= 1;
    expect(!near(rows / 2), "how many bytes has a weight?");
    expect(!near(2 * rows), "how many operations is a weight used for, in one row?");
    expect(Math.floor(rows) <= answer && answer <= Math.ceil(rows),
      "set the seconds for the bytes of one weight beside those for its operations");
  });
})();
