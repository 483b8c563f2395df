"use strict";
// Chapter 13: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("where-the-end-stands", answer => {
    const tokens = ["question", "end", "header", "4", "end"];
    const places = { a: 1, b: 2, c: 3, d: 4 };
    expect(answer in places, "choose one of the letters");
    const place = places[answer];
    expect(place !== 1, "is the end of a question learned?");
    expect(place !== 2, "what is to be predicted there is the 4");
    expect(place !== 4, "a label is what follows its place");
    expect(tokens[place + 1] === "end", "what is to be predicted there?");
  });

  exercise("epochs", answer => {
    expect(Number.isInteger(answer) && answer > 0 && answer < 100, "a whole number of steps");
    const seen = Math.min(answer * 4 * 2, 3 * 11);
    expect(seen === 3 * 11, `in so many steps ${seen} samples are seen`);
    expect((answer - 1) * 4 * 2 < 3 * 11, "some of the steps have no sample");
  });

  exercise("mean-of-means", answer => {
    const times = (1 / 2) / (1 / 8);
    expect(answer !== 1, "so it is if the two sums are divided by all ten");
    expect(answer !== 1 / times, "that is a token of the long batch, beside a short one's");
    expect(answer === times, "by what is the loss of each token divided, in each batch?");
  });
})();
