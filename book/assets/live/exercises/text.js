"use strict";
// Chapter 16: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("active-share", answer => {
    expect(typeof answer === "number" && answer > 0, "a number of billions is above 0");
    const width = 4096, wide = 14336, experts = 8, chosen = 2, heads = 32, groups = 8, size = 128;
    const attention = 2 * width * heads * size + 2 * width * groups * size;
    const layer = attention + chosen * 3 * width * wide + experts * width + 2 * width;
    const times = answer / ((32 * layer + 2 * 32000 * width + width) / 1e9);
    expect(Math.abs(times - 1) < 0.02, `counted, it is ${Number(times.toPrecision(3))} times as many`);
  });

  exercise("first-wrong-token", answer => {
    const talks = { a: [5, 2], b: [9, 1], c: [9, 3], d: [5, 3] }, chunk = 8;
    expect(answer in talks, "the answer is one of the letters");
    const [prompt, written] = talks[answer];
    let differs = false;  // some step of one token looks back over the edge of its chunk
    for (let i = prompt; i < prompt + written - 1; i++) differs ||= i >= chunk;
    expect(differs, "tried at a thousandth, and nothing differs");
  });
})();
