"use strict";
// Chapter 2: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("base-for-eight", answer => {
    expect(typeof answer === "number" && answer > 1, "a base is a number above 1");
    const slowest = base => base ** (-126 / 128);
    const times = slowest(500000) / slowest(answer);
    expect(Math.abs(times / 8 - 1) < 1e-3,
      `with this base the slowest pair turns ${Number(times.toPrecision(3))} times as slowly`);
  });

  exercise("no-score-moves", answer => {
    const hints = {
      a: "does a score tell two before from two after?",
      b: "is the difference of the positions still what counts?",
      d: "exchanged like this, which way round does a pair turn?",
    };
    expect(["a", "b", "c", "d"].includes(answer), "the answer is one of the letters");
    expect(answer === "c", hints[answer]);
  });
})();
