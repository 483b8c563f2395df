"use strict";
// Chapter 3: a piece of new tokens meets keys that are in the cache. The triangle has to end at the last key;
// where it begins at the first, as with `is_causal`, the newest keys are hidden and nothing fails.
mllama.figure("causal_piece", figure => {
  const CELL = 27, LEFT = 44, TOP = 44;
  const cached = figure.slider({ label: "Tokens in the cache", min: 0, max: 6, value: 3 });
  const added = figure.slider({ label: "New tokens T", min: 1, max: 4, value: 3 });

  // Zeros for queries and keys make all scores equal, so that the weights are the mask, divided up.
  const kinds = {
    "causal_mask(T, S)": (t, s) => s <= cached.value + t,
    "is_causal=True": (t, s) => s <= t,
  };
  const tables = () => Object.values(kinds).map(sees => {
    const T = added.value, S = cached.value + T, zeros = n => new Float32Array(n);
    const { weights } = mllama.attentionByHand(zeros(T), zeros(S), zeros(S), 1, 1, 1, sees);
    return Array.from({ length: T }, (_, t) => Array.from(weights.subarray(t * S, (t + 1) * S)));
  });
  const hiddenKeys = t => tables()[0][t].filter((weight, s) => weight > 0 && !tables()[1][t][s]).length;

  Object.keys(kinds).forEach((title, kind) => figure.drawing({ width: 320, height: 190 }, svg => {
    const all = tables(), first = cached.value;
    svg.text(0, 14, title, { "font-weight": "bold" });
    svg.text(0, TOP - 7, "query", { size: 12, fill: "grey" });
    all[kind].forEach((row, t) => {
      const y = TOP + CELL * t;
      svg.text(LEFT - 12, y + 18, first + t, { size: 12, anchor: "end" });
      row.forEach((weight, s) => {
        const x = LEFT + CELL * s, missed = !weight && all[0][t][s] > 0;
        if (!t) svg.text(x + CELL / 2, TOP - 7, s, { size: 12, anchor: "middle" });
        svg.rect(x + 1, y + 1, CELL - 2, CELL - 2, {
          ink: weight ? "blue" : missed ? "orange" : "grey", "stroke-width": weight || missed ? 2 : 0.5,
        });
        const told = weight === 1 ? "1" : weight ? weight.toFixed(2).slice(1) : missed ? "\u2715" : "";
        svg.text(x + CELL / 2, y + 18, told, { size: 12, anchor: "middle", fill: missed ? "orange" : "ink" });
      });
    });
    const y = TOP + CELL * added.value + 20;
    svg.text(0, y, "keys above, weights in the frames", { size: 12, fill: "grey" });
    if (kind && first) svg.text(0, y + 16, "\u2715 hidden, though it may be seen", { size: 12, fill: "orange" });
  }));

  figure.values(tables);

  figure.words(() => {
    const T = added.value, C = cached.value;
    const start = `${T} new ${T === 1 ? "token" : "tokens"}, ${C} in the cache, ${C + T} keys.`;
    if (!C) return `${start} With an empty cache both masks are the same triangle.`;
    const missing = Array.from({ length: T }, (_, t) => hiddenKeys(t)).reduce((a, b) => a + b);
    return `${start} Lined up with the first key, the triangle hides ${missing} pairs that may be seen: token ${C} `
      + "sees key 0 alone, and no new token its own key. It shows no later key, so a check for looking ahead "
      + "finds nothing.";
  });
});
