"use strict";
// Chapter 12: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("rank-for-a-file", answer => {
    const bytes = 4 * 32 * (4096 + 4096 + 4096 + 1024);  // at rank 1: queries and values, in 32 layers
    expect(Number.isInteger(answer), "a rank is a whole number");
    const size = answer * bytes / 2 ** 20;
    expect(size <= 100, `at that rank the file has ${size.toFixed(1)} MiB`);
    expect((answer + 1) * bytes > 100 * 2 ** 20, "a higher rank fits as well");
  });

  exercise("first-steps", answer => {
    expect("cd".includes(answer), "what is a product one of whose factors is 0?");
    expect(answer === "c", "write both gradients down: which factor does each go through?");
  });
})();
