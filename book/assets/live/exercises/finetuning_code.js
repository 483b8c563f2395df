"use strict";
// Chapter 13: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise } = mllama;

  codeExercise("order-without-a-list", ["place"], place => {
    const at = (i, count, seed) => {
      const found = place(BigInt(i), BigInt(count), BigInt(seed));
      const isPlace = typeof found === "bigint" && found >= 0n && found < BigInt(count);
      expect(isPlace, `of ${count} samples some places are no int from 0 on`);
      return Number(found);
    };
    const distances = (order, count) =>
      new Set(order.slice(1).map((found, i) => (found - order[i] + count) % count)).size;
    const seeds = [0, 1], orders = {};
    for (const count of [1, 2, 7, 100, 1000]) for (const seed of seeds) {
      const order = Array.from({ length: count }, (_, i) => at(i, count, seed)), twice = count - new Set(order).size;
      expect(twice === 0, `of ${count} samples ${twice} never come`);
      expect(at(Math.floor(count / 2), count, seed) === order[Math.floor(count / 2)], "the same call gives another");
      orders[seed] = order;
    }
    for (const seed of seeds) {
      const far = distances(orders[seed], 1000);
      expect(far > 300, `from sample to next there are only ${far} distances of 1,000`);
    }
    const same = orders[0].filter((found, i) => found === orders[1][i]).length;
    expect(same < 100, `with another seed ${same} of 1,000 samples stand where they did`);
    const count = 1e12, some = Array.from({ length: 500 }, (_, i) => at(5e11 + i, count, 3));
    expect(new Set(some).size === 500, "of 10^12 samples some places come twice, or lie outside");
    expect(distances(some, count) > 400, "of 10^12 samples the order is no order");
  });
})();
