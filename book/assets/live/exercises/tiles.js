"use strict";
// Chapter 5: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect, codeExercise, draw, tensor, numbersOf, resize } = mllama;

  exercise("letters-of-a-scan", answer => {
    const height = 3508, width = 2480, letters = 30, tile = 560;
    const near = wrong => Math.abs(answer - wrong) < 0.1;
    expect(!near(letters), "does the page fit without being shrunk?");
    expect(!near(letters * tile / height), "how many tiles may a picture have?");
    expect(!near(letters * 2 * tile / width), "do both sides fit now?");
    expect(!near(letters * 4 * tile / height), "how wide is that canvas?");
    expect(near(letters * 2 * tile / height),  // on 2 x 2 tiles
      "first the canvas, then the factor by which the page shrinks");
  });

  exercise("exact-zero", answer => {
    expect(["a", "b", "c", "d"].includes(answer), "the answer is one of the four letters");
    expect(answer === "d", "try a picture with every level from 0 to 255");
  });

  codeExercise("antialiased-row", ["antialiased_row"], shrink => {
    for (const [length, count] of [[8, 2], [8, 4], [50, 7], [33, 30], [9, 1]]) {
      const rgb = new Uint8Array(3 * length), row = Array.from({ length }, () => draw(0, 256));
      row.forEach((level, i) => rgb.fill(level, 3 * i, 3 * i + 3));
      const filtered = resize({ rgb, height: 1, width: length }, 1, count).rgb.filter((_, i) => i % 3 === 0);
      const got = numbersOf(shrink(tensor([length], row), BigInt(count)), [count], `${length} pixels to ${count}:`);
      const off = got.map((level, i) => Number.isFinite(level) ? Math.abs(level - filtered[i]) : Infinity);
      const place = off.indexOf(Math.max(...off));
      expect(off[place] < 0.75,  // the page's engine rounds to whole levels, as Pillow does
        `${length} pixels to ${count}: pixel ${place} is ${off[place].toFixed(1)} levels off`);
    }
  });
})();
