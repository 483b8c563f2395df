"use strict";
// Chapter 1: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("split-by-eye", answer => {
    const text = "She'll pay 12345.50 for  7 boats!\n";
    const pieces = text.match(mllama.SPLIT_PATTERN).length;
    expect(answer !== text.trim().split(/\s+/).length, "the pattern cuts inside these, too");
    expect(answer !== pieces - 2, "may a space stand in front of a digit?");
    expect(answer !== pieces - 1, "how many digits does a piece hold at most?");
    expect(answer !== pieces + 1, "what does a run of other signs take with it?");
    expect(answer === pieces, "go through the table of alternatives, piece by piece");
  });

  exercise("ranks-shuffled", answer => {
    expect(answer !== "a", "what is the rank for, besides being a number?");
    expect(answer !== "c", "which ranks does decoding compare?");
    expect(answer !== "d", "the single bytes are still there");
    expect(answer === "b", "the answer is one of the letters");
  });
})();
