"use strict";
// Chapter 16: tokens and the experts that take them. The loss sees how much the router likes an expert; the bias
// moves the choice alone.
mllama.figure("expert_load", figure => {
  const TOKENS = 12, EXPERTS = 4, INKS = ["blue", "orange", "green", "purple"], STEP = 24;
  const liked = figure.slider({ label: "All like expert 0", min: 0, max: 4, step: 0.25, value: 1.5 });
  const bias = figure.slider({ label: "Bias of expert 0", min: -4, max: 0, step: 0.25, value: 0 });
  const many = figure.slider({ label: "Experts a token, K", min: 1, max: 2, value: 1 });

  // Fixed tastes: each token likes one expert in particular, and another a little.
  const taste = (token, expert) => 1.6 * Math.sin(2.1 * token + 1.7 * expert) + 0.4 * Math.cos(token * expert + 0.3);
  const range = n => Array.from({ length: n }, (_, i) => i);
  const logits = () => range(TOKENS).map(t => range(EXPERTS).map(e => taste(t, e) + (e ? 0 : liked.value)));
  const chosen = () => logits().map(row => {
    const biased = row.map((s, e) => s + (e ? 0 : bias.value));
    return range(EXPERTS).sort((a, b) => biased[b] - biased[a]).slice(0, many.value);
  });
  const counts = () => {
    const found = range(EXPERTS).map(() => 0);
    for (const one of chosen().flat()) found[one] += 1;
    return found;
  };
  const load = () => counts().map(n => n * EXPERTS / (TOKENS * many.value));
  const loss = () => {
    const mean = range(EXPERTS).map(() => 0);
    for (const row of logits()) {
      const top = Math.max(...row), parts = row.map(s => Math.exp(s - top)), sum = parts.reduce((a, b) => a + b);
      parts.forEach((part, e) => { mean[e] += part / sum / TOKENS; });
    }
    return load().reduce((sum, share, e) => sum + share * many.value * mean[e], 0);
  };

  figure.drawing({ width: 320, height: 250 }, svg => {
    svg.text(0, 14, "Which experts take which token", { "font-weight": "bold" });
    range(EXPERTS).forEach(e => svg.text(0, 62 + 44 * e, `expert ${e}`, { fill: INKS[e] }));
    chosen().forEach((experts, t) => {
      svg.text(74 + STEP * t * 0.85, 36, t, { size: 11, anchor: "middle", fill: "grey" });
      experts.forEach((e, k) => svg.circle(74 + STEP * t * 0.85, 57 + 44 * e, k ? 5 : 8, { ink: INKS[e], fill: INKS[e] }));
    });
    svg.text(0, 226, "Columns are tokens; with K = 2 the second choice is small.", { size: 11, fill: "grey" });
  });
  figure.drawing({ width: 260, height: 250 }, svg => {
    svg.text(0, 14, "Load", { "font-weight": "bold" });
    load().forEach((share, e) => {
      svg.rect(60, 44 + 44 * e, 40 * share, 26, { fill: INKS[e], "fill-opacity": 0.8 });
      svg.text(256, 62 + 44 * e, share.toFixed(2), { size: 12, anchor: "end" });
      svg.text(0, 62 + 44 * e, `expert ${e}`, { fill: INKS[e] });
    });
    svg.line(100, 36, 100, 212, { ink: "grey", width: 1, "stroke-dasharray": "3 4" });
    svg.text(100, 232, "1: used alike", { size: 11, anchor: "middle", fill: "grey" });
  });

  figure.values(() => ({ logits: logits(), chosen: chosen(), load: load(), loss: loss() }));

  figure.words(() => {
    const shares = load(), most = shares.indexOf(Math.max(...shares));
    const state = Math.max(...shares) > 1.34 ? `Expert ${most} has ${counts()[most]} of ${TOKENS * many.value} places`
      : "No expert has a third more than its share";
    const bent = bias.value ? " The bias moved choices, and no probability." : "";
    return `${state}. The balance loss is ${loss().toFixed(2)}, where ${many.value} would be balance.${bent}`;
  });
});
