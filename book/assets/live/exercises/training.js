"use strict";
// Chapter 11: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("gates-recall", answer => {
    // Gradients of (tanh(g) f - 1)² in two steps from g = 0, f = .7.
    let g = 0, f = 0.7;
    const moving = [0, 1].map(() => {
      const off = 2 * (Math.tanh(g) * f - 1);
      const [dg, df] = [off * f * (1 - Math.tanh(g) ** 2), off * Math.tanh(g)];
      [g, f] = [g - 0.1 * dg, f - 0.1 * df];
      return [dg !== 0, df !== 0];
    });
    const told = {
      a: [[true, true], [true, true]], b: [[true, false], [true, true]],
      c: [[false, true], [true, true]], d: [[true, false], [true, false]],
    }[answer];
    expect(JSON.stringify(told) === JSON.stringify(moving), "multiply by tanh(0), then by tanh of a small number");
  });

  exercise("guess-count", answer => {
    const pictures = [...[1, 2, 3, 4].flatMap(n => Array(7).fill(n)), 1, 1, 2, 2];
    const best = Math.max(...[1, 2, 3, 4].map(n => pictures.filter(m => m === n).length / pictures.length));
    expect(!(Math.abs(answer - 1 / 4) <= 1e-3), "some pictures never have four things");
    expect(Math.abs(answer - best) < 1e-3, "count it out for 32 pictures");
  });

  exercise("enough-questions", answer => {
    expect(Number.isInteger(answer) && answer > 0, "it is a number of questions");
    const wide = count => {  // of Wilson's interval
      const z = 1.96, share = Math.round(0.95 * count) / count;
      const spread = Math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2);
      return 2 * z * spread / (1 + z * z / count);
    };
    expect(wide(answer) <= 0.02 * 1.005, `it is still ${wide(answer).toFixed(4)} wide`);
    expect(wide(0.93 * answer) > 0.02, "far fewer would do");
  });
})();
