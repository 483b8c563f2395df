"use strict";
// Chapter 9: rows of queries and keys in the wrong order. One matrix wrong ruins attention; both wrong
// leave a head that finds by content half right, and lose the head that counts places.
mllama.figure("row_order", figure => {
  const { applyRope, attentionByHand, ropeCosSin, ropeFrequencies } = mllama;
  const HEADS = 2, SIZE = 8, HALF = SIZE / 2, LETTERS = [..."abcdef"], T = LETTERS.length, SHARP = 16;
  const INKS = ["blue", "orange", "green", "purple"], frequencies = ropeFrequencies(SIZE, 10000);
  const range = n => Array.from({ length: n }, (_, i) => i);

  // What W_q and W_k make of a letter, rows in Meta's order: pairs are (0, 1), (2, 3), …
  // Head 0 has letters in the slow rows 4, 5, 6. Head 1 has every key alike in the fast rows 1 and 3, and
  // its query is turned back by one place.
  const letterRows = i => range(SIZE).map(row => (row === 4 + (i >> 1) ? 1 - 2 * (i % 2) : 0));
  const back = range(SIZE).map(row => (row > 3 ? 0
    : row % 2 ? Math.cos(frequencies[row >> 1]) : Math.sin(frequencies[row >> 1])));
  const place = range(SIZE).map(row => (row === 1 || row === 3 ? 1 : 0));
  const metas = {
    query: range(T).map(i => [letterRows(i), back].map(rows => rows.map(x => SHARP * x))),
    key: range(T).map(i => [letterRows(i), place]),
  };
  const ORDER = [...range(HALF).map(i => 2 * i), ...range(HALF).map(i => 2 * i + 1)];  // to half-split

  const reorder = {
    query: figure.toggle({ label: "Reorder the rows of queries" }),
    key: figure.toggle({ label: "Reorder the rows of keys" }),
  };
  const gap = figure.slider({ label: "Places between", min: 0, max: 30, value: 14 });

  const order = which => (reorder[which].value ? ORDER : range(SIZE));
  function turned(which, start) {
    const rows = metas[which].flatMap(heads => heads.flatMap(head => order(which).map(row => head[row])));
    const angles = ropeCosSin(frequencies, range(T).map(i => start + i));
    return applyRope(Float32Array.from(rows), SIZE, angles);
  }
  // Weights [T, T] of a head: the letters again, after the gap; or the six themselves.
  function weightsOf(head) {
    const query = turned("query", head ? 0 : T + gap.value), key = turned("key", 0);
    const sees = head ? (t, s) => s <= t : undefined;
    const { weights } = attentionByHand(query, key, key, SIZE, HEADS, HEADS, sees);
    return range(T).map(t => Array.from(weights.subarray((t * HEADS + head) * T, (t * HEADS + head + 1) * T)));
  }
  const wanted = head => (t => t - head);
  const found = head => weightsOf(head).filter((row, t) => row[wanted(head)(t)] > 0.5).length;

  // Which rows the code turns together, line for line.
  figure.drawing({ width: 300, height: 235 }, svg => {
    svg.text(0, 32, "radians a place");
    svg.text(132, 32, "query", { anchor: "middle" });
    svg.text(248, 32, "key", { anchor: "middle" });
    svg.text(0, 14, "Rows that turn together");
    for (let i = 0; i < HALF; i++) {
      const y = 42 + 46 * i, rows = {};
      svg.text(0, y + 24, `${Number(frequencies[i].toPrecision(1))}`);
      for (const [which, x] of [["query", 100], ["key", 216]]) {
        rows[which] = [order(which)[i], order(which)[i + HALF]];
        rows[which].forEach((row, n) => {
          svg.rect(x + 33 * n, y, 30, 36, { ink: INKS[row >> 1], "stroke-width": 3, rx: 4 });
          svg.text(x + 33 * n + 15, y + 24, row, { anchor: "middle", size: 16 });
        });
      }
      const meets = rows.query.every((row, n) => row === rows.key[n]);
      svg.text(189, y + 25, meets ? "=" : "≠", { anchor: "middle", size: 20, fill: meets ? "ink" : "orange" });
    }
    svg.text(0, 232, "One colour: a pair in Meta’s order.", { size: 12 });
  });

  const TITLES = ["Head 0: the same letter, before", "Head 1: the letter just before"];
  for (const head of [0, 1]) figure.drawing({ width: 240, height: 235 }, svg => {
    svg.text(0, 14, TITLES[head]);
    weightsOf(head).forEach((row, t) => {
      svg.text(12, 61 + 31 * t, LETTERS[t], { anchor: "middle", size: 14 });
      svg.text(44 + 35 * t, 34, LETTERS[t], { anchor: "middle", size: 14 });
      row.forEach((weight, s) => {
        const x = 28 + 35 * s, y = 41 + 31 * t, looked = s === wanted(head)(t);
        svg.rect(x, y, 32, 28, { fill: "blue", "fill-opacity": (0.65 * weight).toFixed(3) });
        svg.rect(x, y, 32, 28, { ink: looked ? "orange" : "grey", "stroke-width": looked ? 3 : 0.5 });
        if (weight >= 0.005) svg.text(x + 16, y + 19, Math.round(100 * weight), { anchor: "middle", size: 12 });
      });
    });
  });

  figure.values(() => ({ weights: [weightsOf(0), weightsOf(1)], found: [found(0), found(1)] }));

  figure.words(() => {
    const [query, key] = [reorder.query.value, reorder.key.value];
    const state = query && key ? "Both matrices are in the order that the code expects"
      : query || key ? `The ${query ? "keys" : "queries"} alone are in Meta’s order: different rows meet`
        : "Both are in Meta’s order: the same rows meet, but at the wrong speeds";
    return `${state}. Head 0 gives more than half of its attention to the letter it looks for in ${found(0)} of ${T} `
      + `cases, ${T + gap.value} places back; head 1 in ${found(1)} of ${T - 1}. Numbers are weights in percent, rows `
      + "are queries, and the wanted cell has a thick border.";
  });
});
