"use strict";
// Chapter 7: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("which-channel", answer => {
    const width = 1280, kept = 5, place = 4567;
    expect(answer !== place - width, "whose channels alternate behind the final state?");
    expect(answer !== place % width, "do the kept states follow one another as blocks?");
    expect(answer !== Math.floor(place / kept), "which channels come before the kept states?");
    expect(answer === Math.floor((place - width) / kept), "what stands in the first 1,280 channels, and what behind?");
  });

  exercise("never-wakes", answer => {
    expect(answer === "b", "in this one something has a gradient: what?");
  });
})();
