"use strict";
// Chapter 18: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("vectors-of-a-sound", answer => {
    expect(typeof answer === "number" && answer > 0, "a number of vectors is above 0");
    const samples = 7 * 16000, hop = 160, stride = 2, stack = 4;
    let found = 0;  // every stack that begins within the sound is a vector
    for (let state = 0; state < samples / hop / stride; state += stack) found++;
    expect(answer === found, `tried, it is ${Number((answer / found).toPrecision(3))} times as many as come out`);
  });

  exercise("empty-bands", answer => {
    expect(Number.isInteger(answer) && answer >= 0 && answer <= 80, "there are 80 bands");
    const toMel = hertz => (hertz < 1000 ? 3 * hertz / 200 : 15 + 27 * Math.log(hertz / 1000) / Math.log(6.4));
    const toHertz = mel => (mel < 15 ? 200 * mel / 3 : 1000 * Math.exp((mel - 15) / 27 * Math.log(6.4)));
    let empty = 0;  // a bin of the transform is 40 Hz
    for (let band = 0; band < 80; band++) {
      const left = toHertz(toMel(8000) * band / 81);
      if (Math.floor(left / 40) * 40 + 40 > 4000) empty++;
    }
    expect(answer === empty, `counted, there are ${answer < empty ? "more" : "fewer"}`);
  });
})();
