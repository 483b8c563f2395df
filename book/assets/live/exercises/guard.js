"use strict";
// Chapter 19: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;
  const high = n => 1.96 ** 2 / (n + 1.96 ** 2);  // of Wilson's interval after 0 of n

  exercise("none-refused", answer => {
    expect(Number.isInteger(answer) && answer > 0, "a number of probes is whole and above 0");
    expect(high(answer) < 0.01, `the upper end is ${(100 * high(answer)).toFixed(4)}% there`);
    expect(answer === 1 || high(answer - 1) >= 0.01, "fewer are enough");
  });

  exercise("one-in-a-thousand", answer => {
    expect(typeof answer === "number" && answer >= 0 && answer <= 100, "a share in percent is from 0 to 100");
    const share = 100 * 0.9 / (0.9 + 999 * 0.05);
    expect(Math.abs(answer - share) < 0.1, "counted over a thousand requests, it is another");
  });
})();
