"use strict";
// Chapter 2: a query and a key turn as their positions grow; their score hangs on the difference.
mllama.figure("rope_clock", figure => {
  const { applyRope, ropeCosSin, ropeFrequencies } = mllama;
  const PAIRS = 4, SIZE = 2 * PAIRS, frequencies = ropeFrequencies(SIZE, 10000);
  // The same arrow in every pair: what differs is only how fast it turns.
  const arrow = Float32Array.from({ length: SIZE }, (_, i) => (i < PAIRS ? 1 : 0));
  const turned = position => applyRope(arrow, SIZE, ropeCosSin(frequencies, [position]));

  const m = figure.slider({ label: "Query at position", min: 0, max: 60, value: 12 });
  const n = figure.slider({ label: "Key at position", min: 0, max: 60, value: 9 });
  const locked = figure.toggle({ label: "Lock the distance", value: false });
  let distance = m.value - n.value;
  locked.input.addEventListener("input", () => { distance = m.value - n.value; });
  const follow = (moved, other, sign) => moved.input.addEventListener("input", () => {
    const wanted = moved.value + sign * distance;
    if (locked.value && other.value !== wanted) {
      other.value = wanted;
      if (other.value !== wanted) moved.value = other.value - sign * distance;  // at an end
    }
  });
  follow(m, n, -1);
  follow(n, m, 1);

  const scores = () => {
    const query = turned(m.value), key = turned(n.value);
    return Array.from({ length: PAIRS }, (_, i) =>
      query[i] * key[i] + query[i + PAIRS] * key[i + PAIRS]);
  };

  for (let i = 0; i < PAIRS; i++) figure.drawing({ width: 140, height: 240 }, svg => {
    const score = scores()[i], x = 70, y = 66, r = 60;
    svg.circle(x, y, r, { ink: "grey" });
    for (const [position, ink] of [[m.value, "blue"], [n.value, "orange"]]) {
      const vector = turned(position);
      svg.line(x, y, x + r * vector[i], y - r * vector[i + PAIRS], { ink, width: 4 });
    }
    svg.text(x, y + r + 20, `pair ${i}`, { anchor: "middle" });
    svg.line(x - 60, 190, x + 60, 190, { ink: "grey" });
    svg.rect(x - 20, score > 0 ? 190 - 34 * score : 190, 40, 34 * Math.abs(score), { fill: "green" });
    svg.text(x, 238, score.toFixed(2), { anchor: "middle" });
  });

  figure.values(scores);

  figure.words(() => {
    const total = scores().reduce((a, b) => a + b, 0);
    return `Query (blue) at ${m.value}, key (orange) at ${n.value}, ${m.value - n.value} apart: the pairs' shares of the `
      + `score are ${scores().map(s => s.toFixed(2)).join(", ")}; together ${total.toFixed(2)}.`;
  });
});
