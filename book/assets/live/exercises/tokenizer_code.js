"use strict";
// Chapter 1: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise, draw, bpeMerge, python } = mllama;

  // Tokens overlap at every turn: no training would learn this table.
  const letters = length => Array.from({ length }, () => "abcd"[draw(0, 4)]).join("");
  function clashingRanks() {
    const found = new Set("abcd");
    while (found.size < 60) found.add(letters(draw(2, 5)));
    return new Map([...found].map((token, rank) => [token, rank]));
  }

  // A table for the page's Python, which counts how often it is asked.
  function counted(ranks) {
    const dict = python.dict([...ranks].map(([token, rank]) => [token, BigInt(rank)])), { has } = Map.prototype;
    return Object.assign(dict, { asked: 0, has(key) { dict.asked += 1; return has.call(dict, key); } });
  }

  codeExercise("merge-few-look-ups", ["merge_few"], merge => {
    const compare = (word, ranks, table, name) => {
      const got = merge(word, table), wanted = bpeMerge(word, ranks);
      expect(Array.isArray(got), `${name} gives no list`);
      expect(got.length === wanted.length && wanted.every((rank, i) => python.same(got[i], BigInt(rank))),
        `${name} becomes ${got.length} tokens, and not those that bpe_merge gives`);
    };
    for (let trial = 0; trial < 40; trial++) {
      const ranks = clashingRanks(), word = letters(draw(1, 13));
      compare(word, ranks, counted(ranks), `"${word}"`);
    }
    const ranks = new Map([1, 2, 4, 8, 16, 32, 64].map((length, rank) => ["a".repeat(length), rank]));
    const table = counted(ranks), word = "a".repeat(200);
    compare(word, ranks, table, "a word of 200 letters a");
    expect(table.asked <= 10 * word.length, `for a word of 200 letters the table is asked ${table.asked} times`);
  });
})();
