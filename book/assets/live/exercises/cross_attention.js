"use strict";
// Chapter 8: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("break-even-answer", answer => {
    const width = 4096, inner = 14336, keys = 2 * width * 1024, rest = 2 * width * width + 3 * width * inner;
    const pair = 4 * width, text = 100, vision = 4 * 1601, tokens = 576;
    const beside = 32 * (2 * tokens * (rest + keys) + (tokens * (tokens + 1) / 2 + text * tokens) * pair);
    const crossed = 8 * (2 * vision * keys + text * vision * pair + 2 * text * rest);
    const added = 8 * (vision * pair + 2 * rest), looked = 32 * tokens * pair;
    const near = value => Math.abs(answer - value) <= 0.03 * value;
    expect(!near((beside - crossed) / added), "with the image in the text, a token of the answer looks at it as well");
    expect(!near(beside / (added - looked)), "the crossed image is not free before the answer either");
    expect(near((beside - crossed) / (added - looked)), "after so many tokens the two have not done the same work");
  });

  exercise("keys-kept", answer => {
    expect("abcde".includes(answer), "the answer is one of the letters");
    expect(answer === "d", "tried, and the keys come out as they were");
  });
})();
