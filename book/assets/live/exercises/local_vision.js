"use strict";
// Chapter 6: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("forbidden-pairs", answer => {
    const tokens = (448 / 14) ** 2 + 1, padded = 8 * Math.ceil(tokens / 8);
    const padding = 4 * padded - 3 * tokens;
    expect(answer !== padding * 4 * padded, "may a real token look at padding?");
    expect(answer !== tokens ** 2 && answer !== padded ** 2, "is the empty tile all that is padding?");
    expect(answer === padding ** 2, "how many tokens are padding, and who sees them?");
  });

  exercise("swapped-tiles", answer => {
    expect(answer === "b", "what tells a token its tile while both gates are 0?");
  });
})();
