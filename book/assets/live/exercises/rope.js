"use strict";
// Chapter 2: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect, codeExercise, randn, tensor, numbersOf, ropeFrequencies, ropeCosSin, applyRope } = mllama;

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

  codeExercise("peak-at-a-distance", ["query_for"], queryFor => {
    const size = 128, speeds = ropeFrequencies(size, 500000), furthest = 400;
    const turned = (x, position) => applyRope(Float32Array.from(x), size, ropeCosSin(speeds, [position]));
    for (const distance of [100, 7, 300]) {
      const key = randn(size), length = Math.hypot(...key.numbers());
      const made = queryFor(key, tensor([size / 2], speeds), BigInt(distance));
      const query = numbersOf(made, [size], "for a key of 128 numbers");
      const longer = Math.hypot(...query) / length;
      expect(Math.abs(longer - 1) < 1e-3, `it is ${longer.toPrecision(3)} times as long as the key`);
      const asks = turned(query, 1000);
      const scores = Array.from({ length: furthest + 1 }, (_, away) =>
        turned(key.numbers(), 1000 - away).reduce((sum, number, i) => sum + number * asks[i], 0));
      const best = scores.indexOf(Math.max(...scores));
      expect(best === distance, `asked for ${distance}, it peaks at ${best}`);
      const far = Math.max(...scores.filter((_, away) => Math.abs(away - distance) > 20)) / scores[best];
      expect(far < 0.9, `asked for ${distance}, it reaches ${Math.round(100 * far)}% of the peak more than 20 away`);
    }
  });
})();
