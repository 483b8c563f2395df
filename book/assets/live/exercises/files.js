"use strict";
// Chapter 15: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("smallest-file", answer => {
    expect(Number.isInteger(answer) && answer >= 0 && answer < 2 ** 20, "a size in bytes is a whole number");
    const least = 8 + "{}".length;  // the length, and the shortest object of JSON
    expect(answer >= least, "tried, and a file of so many bytes is refused");
    expect(answer === least, "one byte less is read as well");
  });

  exercise("damage-unnoticed", answer => {
    expect("abcde".includes(answer), "the answer is one of the letters");
    expect(answer === "c", "tried, and the model is refused");
  });
})();
