"use strict";
// Chapter 17: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("tokens-of-seventeen-tiles", answer => {
    expect(Number.isInteger(answer) && answer > 0, "a number of tokens is above 0");
    const tiles = 17, side = 512, patch = 16, factor = 4;
    const wanted = tiles * (Math.floor(side / patch) / factor) ** 2;
    expect(answer === wanted, `it is ${Number((answer / wanted).toPrecision(3))} times what the tiles become`);
  });

  exercise("who-hears-of-a-word", answer => {
    const told = { a: [9, 9], b: [6, 0], c: [0, 6], d: [6, 6] };  // the first token that changes
    expect(answer in told, "the answer is one of the letters");
    const length = 10, word = 6, layers = 2;
    [0, 9].forEach((prefix, number) => {
      let hears = Array.from({ length }, (_, i) => i === word);
      for (let layer = 0; layer < layers; layer++)
        hears = hears.map((mine, i) => mine || hears.some((other, j) =>
          other && (j <= i || (i < prefix && j < prefix))));
      expect(hears.indexOf(true) === told[answer][number],
             `tried ${number ? "with a prefix" : "causally"}, others change`);
    });
  });
})();
