"use strict";
// Chapter 10: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("tokens-that-stay", answer => {
    const kept = temperature => {
      const weights = Array.from({ length: 40 }, (_, i) => 2 ** (-i / temperature));
      const sum = weights.reduce((a, b) => a + b);
      let before = 0, count = 0;
      for (const weight of weights) {
        if (before / sum <= 0.9) count += 1;
        before += weight;
      }
      return count;
    };
    expect(answer !== kept(1), "those would stay at temperature 1");
    expect(answer !== kept(0.5), "does a temperature above 1 sharpen or flatten?");
    expect(answer !== kept(2) - 1, "what of the token with which the sum passes p?");
    expect(answer === kept(2), "what have all likelier tokens together, at each?");
  });

  exercise("rows-without-end", answer => {
    const tokens = 8192, [weights, image] = [18.37e9, 0.21e9];  // bytes, as the chapter counts them
    const own = image + tokens * 32 * 2 * 8 * 128 * 2;  // of one row's caches
    const work = weights + 4 * 32 * 4096 * tokens;  // two operations a weight, of two bytes
    const rows = { a: 30, b: 300, c: 3000, d: 1e12 };
    expect(answer in rows, "choose one of the letters");
    const found = rows[answer] * work / (weights + rows[answer] * own);
    if (answer === "d") expect(found < 295, "with enough rows, arithmetic decides");
    else expect(found >= 295, `then there are ${Math.round(found)} operations for each byte`);
  });
})();
