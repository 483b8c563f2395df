"use strict";
// Chapter 20: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("numbers-that-learn", answer => {
    expect(Number.isInteger(answer) && answer > 0, "a number of parameters is above 0");
    const encoder = 1280, decoder = 192;
    const wanted = encoder + encoder * decoder;
    expect(answer === wanted, `it is ${Number((answer / wanted).toPrecision(4))} times what it has`);
  });

  exercise("rank-of-a-guess", answer => {
    expect(Number.isFinite(answer), "a rank is a number");
    let sum = 0;
    for (let rank = 1; rank <= 200; rank++) sum += rank;
    expect(Math.abs(answer - sum / 200) < 0.01, `${answer} is not the mean of all ranks, each once`);
  });
})();
