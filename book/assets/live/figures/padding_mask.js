"use strict";
// Chapter 6: which keys a token of the vision encoder may look at. Real tokens look at padding;
// moved to the front, they leave the forbidden pairs one block in the corner.
mllama.figure("padding_mask", figure => {
  const { canvases, paddedLength, realTokensFirst } = mllama;
  const K = 4, SIDE = 250, LENGTHS = { "5, as drawn above": 5, "17, the small model": 17, "1601, tiles of 560": 1601 };
  const RULES = {
    "as it is: padding to padding": (query, key) => !query && !key,
    "repaired: all to padding": (_, key) => !key,
  };

  const written = number => number.toLocaleString("en-US");

  const canvas = figure.choice({ label: "Canvas", options: canvases().map(c => c.join(" x ")), value: "1 x 2" });
  const length = figure.choice({ label: "Tokens a tile", options: Object.keys(LENGTHS) });
  const rule = figure.choice({ label: "Forbidden", options: Object.keys(RULES) });
  const first = figure.toggle({ label: "Real tokens first" });
  const query = figure.slider({ label: "Query", min: 0, max: 31, value: 3 });
  length.input.addEventListener("input", () => {  // as far down as before
    const share = query.value / (Number(query.input.max) + 1), total = K * paddedLength(LENGTHS[length.value]);
    query.input.max = total - 1;
    query.value = Math.floor(share * total);
  });

  // Runs of tokens of one sort in the order that is drawn: { start, end, real, kind }.
  function layout() {
    const P = LENGTHS[length.value], padded = paddedLength(P), total = K * padded;
    const tiles = canvas.value.split(" x ").reduce((a, b) => a * b, 1), numReal = tiles * P;
    const order = realTokensFirst(tiles, K, P), isReal = new Array(total).fill(false);
    for (const place of order.slice(0, numReal)) isReal[place] = true;
    const shown = first.value ? order : order.map((_, i) => i), runs = [];
    const kindOf = place => (Math.floor(place / padded) >= tiles ? "empty tile"
      : place % padded >= P ? "filler" : "real");
    shown.forEach((place, i) => {
      const real = isReal[place], last = runs.at(-1), tile = Math.floor(place / padded);
      if (last && last.real === real && last.tile === tile) last.end = i + 1;
      else runs.push({ start: i, end: i + 1, real, tile, kind: kindOf(place) });
    });
    return { padded, total, tiles, numReal, shown, runs };
  }

  function state() {
    const { runs, total, numReal, shown, tiles, padded } = layout(), forbids = RULES[rule.value];
    const forbidden = runs.flatMap(q => runs.filter(k => forbids(q.real, k.real))
      .map(k => [q.start, q.end, k.start, k.end]));
    const at = Math.min(query.value, total - 1), own = runs.find(({ start, end }) => at >= start && at < end);
    const keys = runs.filter(run => !forbids(own.real, run.real));
    const count = of => of.reduce((sum, { start, end }) => sum + end - start, 0);
    return {
      runs, total, numReal, own, forbidden, tiles, padded, at, token: shown[at], visible: count(keys),
      visiblePadding: count(keys.filter(run => !run.real)), keys: keys.map(({ start, end }) => [start, end]),
      pairs: forbidden.reduce((sum, [a, b, c, d]) => sum + (b - a) * (d - c), 0),
    };
  }

  const matrix = figure.drawing({ width: 300, height: 306 }, svg => {
    const { runs, total, forbidden, at } = state(), unit = SIDE / total, X = 46, Y = 36, row = Math.max(unit, 2);
    svg.text(X, 14, "Keys: looked at");
    svg.text(0, 30, "Queries", { size: 12 });
    svg.add("rect", { x: X, y: Y, width: SIDE, height: SIDE, fill: "blue", "fill-opacity": 0.3, "data-drag": "row" });
    for (const [a, b, c, d] of forbidden)
      svg.rect(X + unit * c, Y + unit * a, unit * (d - c), unit * (b - a), { fill: "ink", "data-drag": "row" });
    for (const { start, end, kind } of runs) {
      svg.line(X, Y + unit * start, X + SIDE, Y + unit * start, { ink: "grey", width: 0.5 });
      svg.line(X + unit * start, Y, X + unit * start, Y + SIDE, { ink: "grey", width: 0.5 });
      if (unit * (end - start) < 13) continue;
      svg.text(X - 4, Y + unit * (start + end) / 2 + 4, kind.split(" ")[0], { size: 12, anchor: "end" });
      if (unit * (end - start) > 34)
        svg.text(X + unit * (start + end) / 2, Y - 5, kind.split(" ")[0], { size: 12, anchor: "middle" });
    }
    svg.rect(X, Y + unit * at, SIDE, row, { ink: "orange", "data-drag": "row" });
    svg.text(X, Y + SIDE + 17, "filled: forbidden; outlined: the query", { size: 12 });
  });
  matrix.onDrag((_, x, y) => {
    const { total } = state();
    query.value = Math.min(Math.max(Math.floor((y - 36) * total / SIDE), 0), total - 1);
  });

  figure.drawing({ width: 300, height: 306 }, svg => {
    const { runs, total, padded, keys, visible, own } = state(), unit = 105 / padded;
    const sort = { real: "real, of", filler: "filler of", "empty tile": "in the empty" };
    svg.text(0, 14, `The query, ${sort[own.kind]} tile ${own.tile},`);
    svg.text(0, 31, `may look at ${written(visible)} of ${written(total)} keys:`);
    runs.forEach(({ start, end, tile, kind }, i) => {
      const y = 46 + 31 * i, sees = keys.some(([from]) => from === start);
      svg.text(0, y + 15, kind === "empty tile" ? `tile ${tile}, empty` : `tile ${tile}, ${kind}`, { size: 12 });
      svg.rect(84, y, Math.max(unit * (end - start), 1.5), 20, { fill: sees ? "blue" : "ink" });
      svg.text(300, y + 15, `${written(end - start)}${sees ? "" : ", forbidden"}`, { size: 12, anchor: "end" });
    });
  });

  figure.values(() => state());

  figure.words(() => {
    const { own, total, numReal, token, padded, visible, visiblePadding, pairs } = state();
    const repaired = rule.value.startsWith("repaired"), inTile = token % padded;
    const what = own.real ? (inTile ? `patch ${inTile - 1} of tile ${own.tile}, which is real`
      : `the class token of tile ${own.tile}, which is real`)
      : `padding: ${own.kind === "filler" ? "filler of" : "in the empty"} tile ${own.tile}`;
    const [all, real, rest] = [total, numReal, total - numReal].map(written);
    const calls = repaired ? ` One call without a mask does it: ${all} queries with ${real} keys.`
      : ` Two calls without a mask do it: ${real} queries with ${all} keys, ${rest} with ${real}.`;
    return `The query, token ${token}, is ${what}. It may look at ${written(visible)} of ${all} keys, `
      + `${written(visiblePadding)} of them padding. Forbidden are ${written(pairs)} of ${written(total ** 2)} pairs, `
      + `${(100 * pairs / total ** 2).toFixed(1)} %.`
      + (first.value ? calls : "");
  });
});
