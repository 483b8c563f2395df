"use strict";
// Chapter 9: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect } = mllama;

  exercise("byte-of-a-number", answer => {
    const begin = 8 + 200 + 4, columns = 32, count = 48 * columns;
    expect(Number.isInteger(answer), "a byte has a whole number");
    expect(answer >= begin, "that is before the first number of weight");
    expect(answer < begin + 2 * count, "that is behind the end of the file");
    expect((answer - begin) % 2 === 0, "that is the middle of a number");
    const found = (answer - begin) / 2, row = Math.floor(found / columns), column = found % columns;
    expect(row === 10 && column === 3, `there begins the number in row ${row}, column ${column}`);
  });

  exercise("perfect-shuffle", answer => {
    expect(Number.isInteger(answer) && answer >= 1 && answer <= 10000, "how often is a whole number, 1 or more");
    const rows = [...Array(128).keys()];
    let now = rows, moved = 0;
    for (let times = 1; times <= answer; times++) {
      now = [...now.filter((_, i) => i % 2 === 0), ...now.filter((_, i) => i % 2 === 1)];
      moved = now.filter((row, i) => row !== i).length;
      expect(moved > 0 || times === answer, "they were back before that");
    }
    expect(moved === 0, `${moved} of 128 rows are not in their places then`);
  });
})();
