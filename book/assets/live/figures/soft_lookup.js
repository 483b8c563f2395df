"use strict";
// Chapter 3: attention as a soft look-up among six keys. A longer query chooses more sharply, a masked key
// leaves its share to the others, and scores not divided by the root of E choose by chance.
mllama.figure("soft_lookup", figure => {
  const S = 6, SCALE = 38, SIZE = 300;
  const PLACES = [[2.4, 1.6], [0.6, 1.1], [-1.3, 1.9], [-2, -0.3], [-0.4, -1.8], [1.7, -1.2]];
  const VALUES = [10, 20, 30, 40, 50, 60];

  // Numbers with mean 0 and variance 1, the same ones every time.
  let state = 1080;
  const uniform = () => (state = (state * 48271) % 2147483647) / 2147483647;
  const normal = () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
  for (let i = 0; i < 5; i++) uniform();
  const noise = Array.from({ length: S + 1 }, () => Array.from({ length: 126 }, normal));

  const range = { min: -3, max: 3, step: 0.1, format: v => v.toFixed(1) };
  const x = figure.slider({ label: "Query across", value: 1.1, ...range });
  const y = figure.slider({ label: "Query up", value: 0.7, ...range });
  const width = figure.slider({ label: "Head dim E", min: 1, max: 7, value: 1, format: v => String(2 ** v) });
  const divide = figure.toggle({ label: "Divide by \u221aE", value: true });
  const mask = figure.toggle({ label: "Causal mask", value: true });
  const place = figure.slider({ label: "Query's token", min: 0, max: S - 1, value: 4 });

  const sees = s => !mask.value || s <= place.value;
  function attend() {
    const E = 2 ** width.value;
    const vector = (pair, i) => [...pair, ...noise[i].slice(0, E - 2)];
    const query = vector([x.value, y.value], S), keys = PLACES.map(vector);
    // The engine divides; whoever does not want it makes the query as much longer.
    const longer = divide.value ? 1 : Math.sqrt(E);
    const value = new Float32Array(S * E);
    VALUES.forEach((v, s) => { value[s * E] = v; });
    const { output, weights } = mllama.attentionByHand(Float32Array.from(query, v => v * longer),
      Float32Array.from(keys.flat()), value, E, 1, 1, (_, s) => sees(s));
    return { E, query, keys, weights: Array.from(weights), output: output[0] };
  }

  const at = ([a, b]) => [SIZE / 2 + SCALE * a, SIZE / 2 - SCALE * b];
  figure.drawing({ width: SIZE, height: SIZE }, svg => {
    const { weights } = attend();
    svg.line(0, SIZE / 2, SIZE, SIZE / 2, { ink: "grey", width: 0.5 });
    svg.line(SIZE / 2, 0, SIZE / 2, SIZE, { ink: "grey", width: 0.5 });
    PLACES.forEach((key, s) => {
      const [a, b] = at(key), seen = sees(s), ink = seen ? "orange" : "grey", r = 24 * Math.sqrt(weights[s]);
      svg.line(...at([0, 0]), a, b, { ink, "stroke-dasharray": seen ? "none" : "4 4" });
      svg.circle(a, b, 4, { ink, fill: seen ? ink : null });
      if (seen) svg.circle(a, b, r, { ink, "stroke-width": 2 });
      svg.text(a, key[1] > 0 ? b - 10 - r : b + 20 + r, seen ? `key ${s}` : `key ${s}, hidden`, {
        fill: seen ? "ink" : "grey", size: 12, anchor: "middle",
      });
    });
    const [a, b] = at([x.value, y.value]);
    svg.line(...at([0, 0]), a, b, { ink: "blue", width: 4 });
    svg.circle(a, b, 9, { fill: "blue", "data-drag": "query" });
    svg.text(a + 12, b + 16, "query", { fill: "blue" });
  }).onDrag((_, a, b) => {
    const within = v => Math.round(10 * Math.min(Math.max(v, -3), 3)) / 10;
    x.value = within((a - SIZE / 2) / SCALE);
    y.value = within((SIZE / 2 - b) / SCALE);
  });

  figure.drawing({ width: 320, height: SIZE }, svg => {
    const { weights, output } = attend();
    svg.text(0, 16, "key", { fill: "grey", size: 12 });
    svg.text(60, 16, "weight", { fill: "grey", size: 12 });
    svg.text(320, 16, "value", { fill: "grey", size: 12, anchor: "end" });
    weights.forEach((weight, s) => {
      const row = 28 + 36 * s, seen = sees(s);
      svg.text(0, row + 17, s, { fill: seen ? "ink" : "grey" });
      svg.rect(20, row, 200, 24, { ink: "grey", "stroke-width": 0.5 });
      if (weight > 0) svg.rect(20, row, 200 * weight, 24, { fill: "orange" });
      svg.text(228, row + 17, seen ? weight.toFixed(3) : "hidden", { fill: seen ? "ink" : "grey" });
      svg.text(320, row + 17, VALUES[s], { anchor: "end", fill: seen ? "ink" : "grey" });
    });
    svg.line(20, 250, 320, 250, { ink: "grey" });
    svg.text(0, 272, "average of the values", {});
    svg.text(320, 272, output.toFixed(1), { anchor: "end", "font-weight": "bold" });
  });

  figure.values(attend);

  figure.words(() => {
    const { E, weights, output } = attend(), best = weights.indexOf(Math.max(...weights));
    const slope = weights.reduce((sum, a) => sum + a * (1 - a), 0);
    const far = s => Math.hypot(PLACES[s][0] - x.value, PLACES[s][1] - y.value);
    const near = weights.map((_, s) => s).filter(sees).reduce((a, b) => (far(b) < far(a) ? b : a));
    const start = E > 2 ? `Two of the ${E} numbers of a vector are drawn, the others are random. ` : "";
    const product = s => PLACES[s][0] * x.value + PLACES[s][1] * y.value;
    const missed = PLACES.map((_, s) => s).find(s => !sees(s) && product(s) > product(best));
    let told = `${start}Key ${best} has the largest weight, ${weights[best].toFixed(3)}; `
      + `the output is ${output.toFixed(1)}.`;
    if (E === 2 && missed !== undefined) told += ` Key ${missed} would fit better, but the mask hides it.`;
    else if (E === 2 && near !== best) told += ` Key ${near} is nearer, but the product counts, not the distance.`;
    return `${told} The slopes a(1 \u2212 a) sum to ${slope.toFixed(3)}`
      + `${slope < 0.1 ? ": this softmax has made up its mind." : "."}`;
  });
});
