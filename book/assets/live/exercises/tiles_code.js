"use strict";
// Chapter 5: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise, draw, tensor, numbersOf, resize } = mllama;

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
