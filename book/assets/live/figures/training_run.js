"use strict";
// Chapter 11: the training of the shipped model, as it was written down. First it looks, then it
// finds, then it settles: right answers and their loss move at different times.
mllama.figure("training_run", figure => {
  // From notebooks/measured/history/first.json, to three digits, every 200 steps: losses, gates (null:
  // nothing was asked), and right answers of 40 in each row, at the steps of CHECKS.
  const EVERY = 200, STEPS = 12000, CHECKS = [6000, 7000, 8000, 9000, 10000, 11000, 12000];
  const LOSSES = {
    kind: [2.57, 2.34, 1.91, 1.58, 1.37, 1.14, 0.943, 0.841, 0.724, 0.686, 0.631, 0.535, 0.561, 0.494, 0.526,
      0.48, 0.447, 0.377, 0.386, 0.373, 0.377, 0.305, 0.311, 0.388, 0.342, 0.186, 0.248, 0.224, 0.249, 0.247,
      0.258, 0.255, 0.249, 0.238, 0.281, 0.259, 0.198, 0.286, 0.23, 0.243, 0.202, 0.232, 0.192, 0.231, 0.241,
      0.198, 0.231, 0.204, 0.192, 0.155, 0.149, 0.129, 0.136, 0.113, 0.0865, 0.0981, 0.0509, 0.055, 0.0524,
      0.0474],
    colour: [0.627, 0.413, 0.226, 0.17, 0.156, 0.136, 0.125, 0.112, 0.125, 0.105, 0.092, 0.0772, 0.0801,
      0.0753, 0.0834, 0.0804, 0.0768, 0.0727, 0.0545, 0.0623, 0.0677, 0.0639, 0.0789, 0.0644, 0.0634, 0.04,
      0.052, 0.0422, 0.0408, 0.0342, 0.0377, 0.0362, 0.0353, 0.037, 0.0346, 0.0284, 0.0453, 0.0406, 0.0456,
      0.0345, 0.0416, 0.0333, 0.0302, 0.0406, 0.0353, 0.0403, 0.0442, 0.0483, 0.0395, 0.0226, 0.0387, 0.0225,
      0.0233, 0.0249, 0.0205, 0.0198, 0.018, 0.0204, 0.0139, 0.015],
    "from the left": [1.03, 0.929, 0.77, 0.562, 0.663, 0.631, 0.584, 0.594, 0.593, 0.491, 0.501, 0.467, 0.509,
      0.476, 0.464, 0.505, 0.474, 0.423, 0.426, 0.337, 0.427, 0.464, 0.402, 0.366, 0.404, 0.286, 0.357, 0.363,
      0.349, 0.275, 0.334, 0.307, 0.34, 0.361, 0.323, 0.34, 0.341, 0.328, 0.324, 0.292, 0.292, 0.343, 0.304,
      0.292, 0.325, 0.368, 0.286, 0.236, 0.29, 0.26, 0.298, 0.273, 0.289, 0.239, 0.261, 0.197, 0.206, 0.199,
      0.172, 0.177],
    answers: [null, null, null, null, null, null, null, null, null, null, null, null, null, null, null, null,
      null, null, null, null, null, null, null, null, null, 0.585, 0.397, 0.338, 0.28, 0.232, 0.231, 0.204,
      0.216, 0.209, 0.199, 0.203, 0.19, 0.207, 0.209, 0.204, 0.186, 0.187, 0.171, 0.174, 0.171, 0.176, 0.154,
      0.138, 0.145, 0.126, 0.111, 0.101, 0.0872, 0.0834, 0.0704, 0.055, 0.042, 0.0312, 0.0295, 0.0253],
  };
  const GATES = {
    "places in a tile": [0.482, 0.641, 0.598, 0.528, 0.482, 0.405, 0.368, 0.334, 0.277, 0.247, 0.212, 0.205,
      0.179, 0.184, 0.156, 0.144, 0.14, 0.11, 0.0947, 0.0903, 0.0896, 0.0811, 0.0655, 0.0641, 0.0632, 0.079,
      0.0657, 0.0903, 0.0652, 0.0683, 0.076, 0.0804, 0.0683, 0.0709, 0.0724, 0.0674, 0.0536, 0.0441, 0.0606,
      0.0628, 0.0763, 0.0639, 0.0761, 0.0538, 0.0506, 0.056, 0.0506, 0.0661, 0.0652, 0.0682, 0.0696, 0.0698,
      0.0712, 0.0727, 0.0747, 0.0802, 0.082, 0.0859, 0.0869, 0.0881],
    "tiles, before": [0.469, 0.603, 0.64, 0.683, 0.742, 0.815, 0.877, 0.937, 0.979, 1.02, 1.07, 1.13, 1.16,
      1.2, 1.23, 1.27, 1.32, 1.33, 1.36, 1.39, 1.41, 1.45, 1.47, 1.5, 1.53, 1.54, 1.55, 1.59, 1.6, 1.62, 1.63,
      1.65, 1.67, 1.68, 1.71, 1.72, 1.73, 1.74, 1.77, 1.79, 1.81, 1.82, 1.83, 1.83, 1.85, 1.86, 1.88, 1.9,
      1.9, 1.92, 1.93, 1.94, 1.94, 1.95, 1.95, 1.96, 1.96, 1.97, 1.97, 1.97],
    "global 0, attention": [0.246, 0.213, 0.172, 0.137, 0.107, 0.0917, 0.0804, 0.0704, 0.0647, 0.0583, 0.0605,
      0.0551, 0.0572, 0.0636, 0.0604, 0.0599, 0.0652, 0.0594, 0.0632, 0.0644, 0.0686, 0.0651, 0.0697, 0.067,
      0.0618, 0.0662, 0.0704, 0.0741, 0.0712, 0.0745, 0.0715, 0.0712, 0.0757, 0.0723, 0.0723, 0.0718, 0.0759,
      0.0743, 0.0757, 0.0757, 0.0765, 0.0768, 0.0804, 0.0757, 0.0794, 0.0824, 0.076, 0.0833, 0.0806, 0.081,
      0.0804, 0.0812, 0.0848, 0.085, 0.0856, 0.0862, 0.0901, 0.0904, 0.0915, 0.0913],
    "global 1, attention": [0.285, 0.287, 0.336, 0.353, 0.384, 0.414, 0.434, 0.456, 0.46, 0.47, 0.466, 0.482,
      0.483, 0.498, 0.485, 0.499, 0.503, 0.512, 0.514, 0.512, 0.507, 0.505, 0.506, 0.499, 0.5, 0.52, 0.525,
      0.526, 0.521, 0.523, 0.521, 0.518, 0.525, 0.526, 0.528, 0.52, 0.528, 0.519, 0.526, 0.525, 0.521, 0.525,
      0.524, 0.519, 0.524, 0.524, 0.532, 0.539, 0.538, 0.547, 0.545, 0.553, 0.555, 0.566, 0.574, 0.578, 0.587,
      0.591, 0.593, 0.595],
    "layer 3, attention": [0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3,
      0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.318, 0.388, 0.434, 0.443, 0.467, 0.467, 0.488, 0.506,
      0.513, 0.53, 0.541, 0.544, 0.535, 0.551, 0.557, 0.557, 0.577, 0.575, 0.577, 0.58, 0.579, 0.585, 0.589,
      0.586, 0.582, 0.587, 0.59, 0.585, 0.592, 0.583, 0.579, 0.573, 0.573, 0.574, 0.576],
    "layer 3, MLP": [0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3,
      0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.334, 0.312, 0.294, 0.268, 0.257, 0.231, 0.22, 0.212, 0.205, 0.192,
      0.185, 0.179, 0.164, 0.174, 0.172, 0.155, 0.147, 0.132, 0.121, 0.128, 0.115, 0.125, 0.117, 0.119, 0.113,
      0.117, 0.136, 0.126, 0.13, 0.124, 0.134, 0.142, 0.14, 0.144, 0.145],
    "layer 5, attention": [0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3,
      0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.344, 0.4, 0.444, 0.463, 0.484, 0.51, 0.516, 0.541, 0.553,
      0.557, 0.573, 0.592, 0.613, 0.616, 0.635, 0.641, 0.641, 0.65, 0.669, 0.678, 0.689, 0.698, 0.686, 0.694,
      0.693, 0.695, 0.697, 0.696, 0.694, 0.691, 0.692, 0.693, 0.686, 0.686, 0.686],
  };
  const RIGHT = {
    "which digit": [34, 40, 37, 38, 38, 39, 39],
    colour: [27, 31, 35, 39, 39, 39, 40],
    count: [36, 34, 40, 39, 37, 40, 40],
    "one digit": [40, 38, 38, 37, 40, 38, 40],
    "read two digits": [35, 33, 33, 34, 35, 39, 39],
    "read three digits": [7, 20, 17, 20, 27, 32, 35],
    where: [26, 34, 35, 38, 36, 40, 39],
    "left or right of": [18, 27, 27, 32, 29, 33, 39],
    "above or below": [24, 27, 34, 37, 38, 36, 38],
    describe: [29, 29, 33, 35, 34, 37, 38],
    "is there": [27, 23, 27, 24, 33, 38, 38],
  };

  // The plan: two stages, each with a short warm-up, and a line down to 0 at the end.
  const JOINT = 5000, DECAY = 9500;
  const rate = step => (step < JOINT ? 2e-3 : 1.5e-3)
    * Math.min(1, ((step < JOINT ? step : step - JOINT) + 1) / 200, (STEPS - step) / (STEPS - DECAY));

  const format = step => step.toLocaleString("en");
  const ends = [["From step", 6000], ["To step", 9000]].map(([label, value]) =>
    figure.slider({ label, min: EVERY, max: STEPS, step: EVERY, value, format }));

  function at(step) {
    const i = step / EVERY - 1, check = CHECKS.filter(one => one <= step).length - 1;
    const read = table => Object.fromEntries(Object.entries(table).map(([name, values]) => [name, values[i]]));
    const right = check < 0 ? null : Object.fromEntries(
      Object.entries(RIGHT).map(([name, values]) => [name, values[check] / 40]));
    const all = right && Object.values(right).reduce((a, b) => a + b) / Object.keys(right).length;
    return { step, losses: read(LOSSES), gates: read(GATES), check: CHECKS[check] ?? null, right, all,
      rate: rate(step) };
  }
  const both = () => ends.map(end => at(end.value)).sort((a, b) => a.step - b.step);

  const LEFT = 34, X = step => LEFT + 280 * step / STEPS, Y = loss => 200 - 76 * Math.log10(loss / 0.02);
  const LINES = { kind: ["ink", "none"], colour: ["green", "2,3"], "from the left": ["purple", "7,3"],
    answers: ["ink", "none"] };
  const losses = figure.drawing({ width: 320, height: 290 }, svg => {
    svg.text(LEFT, 12, "loss");
    for (const tick of [0.03, 0.1, 0.3, 1]) {
      svg.line(LEFT, Y(tick), 314, Y(tick), { ink: "grey", width: 0.4 });
      svg.text(LEFT - 4, Y(tick) + 4, tick, { anchor: "end", size: 12 });
    }
    for (const step of [JOINT, DECAY])
      svg.line(X(step), 34, X(step), 206, { ink: "grey", "stroke-dasharray": "2,3" });
    svg.text(X(2700), 46, "vision alone", { anchor: "middle", size: 12 });
    svg.text(X(7250), 46, "with questions", { anchor: "middle", size: 12 });
    svg.text(X(10800), 32, "rate falls", { anchor: "middle", size: 12 });
    Object.entries(LINES).forEach(([name, [ink, dashes]], n) => {
      const points = LOSSES[name].flatMap((v, i) => (v === null ? [] : [[X(EVERY * (i + 1)), Y(v)]]));
      const line = { ink, "stroke-dasharray": dashes, width: name === "answers" ? 3 : 1.5 };
      svg.path(points, line);
      const x = LEFT + [0, 66, 0, 134][n], y = [262, 262, 280, 280][n];
      svg.path([[x, y - 4], [x + 18, y - 4]], line);
      svg.text(x + 22, y, name, { size: 12 });
    });
    const steps = [0, 200, JOINT - 1, JOINT, JOINT + 200, DECAY, STEPS];
    svg.path(steps.map(step => [X(step), 234 - 9000 * rate(step)]), { ink: "grey", width: 1 });
    svg.text(X(2500), 230, "learning rate", { anchor: "middle", size: 12 });
    ends.forEach((end, n) => {
      const ink = end.value < ends[1 - n].value || (end.value === ends[1 - n].value && !n) ? "orange" : "blue";
      svg.line(X(end.value), 18, X(end.value), 238, { ink, "data-drag": n, width: 2.5 });
      svg.circle(X(end.value), 241, 7, { fill: ink, "data-drag": n });
    });
  });
  losses.onDrag((n, x) => { ends[n].value = EVERY * Math.round((x - LEFT) / 280 * STEPS / EVERY); });

  // Bars for the later step, with a mark where they stood at the earlier one.
  function bars(svg, title, names, read, left) {
    svg.text(0, 12, title);
    const [before, after] = both().map(read), wide = 300 - left - 40;
    names.forEach((name, i) => {
      const y = 24 + 20 * i;
      svg.text(left - 6, y + 12, name, { anchor: "end", size: 12 });
      svg.line(left, y, left, y + 16, { ink: "grey" });
      if (after) svg.rect(left, y + 2, Math.max(0, wide * after[name]), 12, { fill: "blue" });
      if (before) svg.line(left + wide * before[name], y - 1, left + wide * before[name], y + 17,
        { ink: "orange", width: 3 });
      svg.text(left + wide + 6, y + 12, after ? after[name].toFixed(3) : "", { size: 12 });
    });
  }
  figure.drawing({ width: 300, height: 250 }, svg => {
    bars(svg, "right answers, validation", Object.keys(RIGHT), end => end.right, 126);
    if (!both()[1].check) svg.text(150, 120, "first asked at step 6,000", { anchor: "start", size: 12 });
  });
  figure.drawing({ width: 300, height: 170 }, svg => bars(svg, "gates, tanh", Object.keys(GATES),
    end => Object.fromEntries(Object.entries(end.gates).map(([name, g]) => [name, Math.tanh(g)])), 126));

  figure.values(both);

  figure.words(() => {
    const [a, b] = both(), percent = share => `${Math.round(100 * share)} %`;
    const [first, last] = [a, b].map(end => end.losses.answers);
    const kinds = `the loss for kinds goes from ${a.losses.kind} to ${b.losses.kind}.`;
    const answers = last === null ? `No questions are asked yet; ${kinds}`
      : first === null ? `Questions begin at step 5,000, and the loss of the answers comes to ${last}; ${kinds}`
        : `The loss of the answers goes from ${first} to ${last}, by a factor of ${(first / last).toFixed(1)}.`;
    const right = !b.right ? ""
      : ` Right at the last check: ${a.right ? `${percent(a.all)}, then ` : ""}${percent(b.all)} of 440.`;
    const falling = b.step <= DECAY ? "" : ` The learning rate is down to ${percent(b.rate / 1.5e-3)} of its height.`;
    return `Step ${format(a.step)} (orange marks) to ${format(b.step)} (blue bars). ${answers}${right}${falling}`;
  });
});
