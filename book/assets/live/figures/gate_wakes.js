"use strict";
// Chapter 7: a closed gate learns at once, the branch behind it has to wait; with both at 0 neither
// ever moves. One token of one number: y = x + tanh(g) * f, loss (y - 3)^2 / 2, plain descent.
mllama.figure("gate_wakes", figure => {
  const X = 2, WANTED = 3, RATE = 0.1, STEPS = 100;
  const written = v => (Math.abs(v) < 0.005 ? "0.00" : v.toFixed(2).replace("-", "\u2212"));

  const start = figure.slider({
    label: "Gate g at the start", min: -3, max: 3, step: 0.05, value: 0, format: written });
  const branch = figure.slider({
    label: "Branch f at the start", min: -2, max: 2, step: 0.1, value: 1.5, format: written });
  const steps = figure.slider({ label: "Steps of learning", min: 0, max: STEPS, value: 0 });

  // A gate and a branch of one weight, f itself: what comes out, and both gradients.
  function at(g, f) {
    const passes = Math.tanh(g), slope = 1 - passes ** 2, output = X + passes * f, off = output - WANTED;
    const gateGradient = slope * off * f, branchGradient = passes * off;
    return { gate: g, branch: f, passes, slope, output, gateGradient, branchGradient };
  }

  function learned() {  // every state from the start on
    const states = [at(start.value, branch.value)];
    while (states.length <= STEPS) {
      const { gate, branch: f, gateGradient, branchGradient } = states[states.length - 1];
      states.push(at(gate - RATE * gateGradient, f - RATE * branchGradient));
    }
    return states;
  }
  const now = () => learned()[steps.value];

  const LEFT = 160, WIDE = 38, px = g => LEFT + WIDE * g, py = v => 130 - 80 * v;
  const curves = figure.drawing({ width: 320, height: 235 }, svg => {
    const g = Array.from({ length: 161 }, (_, i) => -4 + i / 20), { gate, passes } = now();
    svg.line(px(-4), py(0), px(4), py(0), { ink: "grey" });
    svg.line(px(0), py(-1), px(0), py(1), { ink: "grey" });
    svg.path(g.map(v => [px(v), py(Math.tanh(v))]), { ink: "blue" });
    svg.path(g.map(v => [px(v), py(1 - Math.tanh(v) ** 2)]), { ink: "orange", "stroke-dasharray": "6 4" });
    svg.text(8, 16, "\u2014 tanh g: how much passes", { fill: "blue" });
    svg.text(8, 34, "- - slope: how fast g can learn", { fill: "orange" });
    const shown = Math.min(4, Math.max(-4, gate));
    svg.line(px(shown), py(0), px(shown), py(passes), { ink: "blue", width: 5 });
    svg.circle(px(shown), py(1 - passes ** 2), 5, { fill: "orange" });
    const first = start.value;
    svg.circle(px(first), py(Math.tanh(first)), 9, { ink: "blue", fill: "none", "stroke-width": 3,
      "data-drag": "gate", "pointer-events": "all" });
    if (steps.value) svg.circle(px(shown), py(passes), 6, { fill: "blue" });
    for (const v of [-4, -2, 2, 4])
      svg.text(px(v), py(0) + 16, written(v).slice(0, -3), { anchor: "middle", size: 12 });
    svg.text(px(0), 230, "gate g; drag the ring", { anchor: "middle" });
  });
  curves.onDrag((_, x) => { start.value = Math.min(3, Math.max(-3, (x - LEFT) / WIDE)).toFixed(2); });

  figure.drawing({ width: 170, height: 170 }, svg => {
    const { gateGradient, branchGradient } = now(), zero = 88;
    svg.text(85, 16, "gradient now", { anchor: "middle" });
    svg.line(10, zero, 160, zero, { ink: "grey" });
    [["gate", gateGradient, "blue"], ["branch", branchGradient, "green"]].forEach(([name, value, fill], i) => {
      const height = Math.min(56, 28 * Math.abs(value)), x = 24 + 76 * i;
      svg.rect(x, value > 0 ? zero - height : zero, 46, height, { fill });
      svg.text(x + 23, value > 0 ? zero + 18 : zero - 8, written(value), { anchor: "middle", fill });
      svg.text(x + 23, 165, name, { anchor: "middle" });
    });
  });

  figure.drawing({ width: 320, height: 235 }, svg => {
    const states = learned(), x = n => 30 + 2.8 * n, y = v => 165 - 32 * Math.min(3.6, Math.max(-2, v));
    for (const v of [-1, 0, 1, 2, 3]) {
      svg.line(30, y(v), 310, y(v), { ink: "grey", width: v ? 0.5 : 1.5,
        ...(v === WANTED ? { "stroke-dasharray": "2 3" } : {}) });
      svg.text(24, y(v) + 4, v < 0 ? `\u2212${-v}` : v, { anchor: "end", size: 12 });
    }
    svg.path(states.map((s, n) => [x(n), y(s.output)]), { ink: "ink", width: 2.5 });
    svg.path(states.map((s, n) => [x(n), y(s.branch)]), { ink: "green", "stroke-dasharray": "8 3" });
    svg.path(states.map((s, n) => [x(n), y(s.passes)]), { ink: "blue" });
    svg.line(x(steps.value), 26, x(steps.value), y(-1.9), { ink: "purple", "stroke-dasharray": "2 3" });
    svg.text(4, 16, "\u2014 output y", { size: 12 });
    svg.text(84, 16, "- - branch f", { fill: "green", size: 12 });
    svg.text(160, 16, "\u2014 tanh g", { fill: "blue", size: 12 });
    svg.text(228, 16, "\u00b7\u00b7\u00b7 wanted: 3", { fill: "grey", size: 12 });
    svg.text(170, 230, "steps of learning", { anchor: "middle" });
  });

  figure.values(now);

  figure.words(() => {
    const { gate, branch: f, passes, output, gateGradient, branchGradient } = now();
    const [first, second] = [gateGradient, branchGradient].map(Math.abs);
    let verdict = "Both learn.";
    if (Math.abs(output - WANTED) < 0.05) verdict = "The output has arrived.";
    else if (first === 0 && second === 0) verdict = "Neither can ever move: this layer is dead.";
    else if (second < 0.005) verdict = "Only the gate learns; the branch waits for it.";
    else if (first < 0.005) verdict = "Only the branch learns.";
    else if (first < 0.1 && second < 0.1) verdict = "Both learn, but slowly.";
    const when = steps.value ? `After ${steps.value} step${steps.value > 1 ? "s" : ""}` : "At the start";
    return `${when} the gate g = ${written(gate)} lets tanh g = ${written(passes)} of the branch `
      + `f = ${written(f)} pass: the output is ${written(output)}, wanted is 3. `
      + `Gradient at the gate ${written(gateGradient)}, at the branch ${written(branchGradient)}. ${verdict}`;
  });
});
