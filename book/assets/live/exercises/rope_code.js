"use strict";
// Chapter 2: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise, randn, tensor, numbersOf, ropeFrequencies, ropeCosSin, applyRope } = mllama;

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
