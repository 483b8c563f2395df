"use strict";
// Chapter 14: what lies in memory through a whole training of the 11B: weights, and for each trained number
// 16 bytes. What is left of a card has to hold the activations.
mllama.figure("before_the_first_activation", figure => {
  const GIB = 2 ** 30, WEIGHTS = 10_670_220_835;
  const CARDS = { L4: 23034, "RTX 4090": 24564, L40S: 46068, H100: 81559 };  // MiB, by nvidia-smi
  const FREE = 0.05;  // of a card, for CUDA itself and for gaps
  const D = 4096, KEYS = 1024, F = 14336, PATCHES = 1280;  // widths of text, of its keys and values; of vision
  const attention = [[D, D], [D, KEYS], [D, KEYS], [D, D]], mlp = [[D, F], [D, F], [F, D]];
  const vision = [...Array(4).fill([PATCHES, PATCHES]), [PATCHES, 4 * PATCHES], [4 * PATCHES, PATCHES]];
  // How many layers, and the matrices of each, from inputs to outputs.
  const PARTS = {
    self: [32, attention], mlp: [32, mlp], cross: [8, [...attention, ...mlp]], vision: [40, vision],
    projector: [1, [[6 * PATCHES, D]]], head: [1, [[D, 128256]]],
  };

  const dtype = figure.choice({ label: "Weights in", options: ["bf16", "fp32"] });
  const power = figure.slider({ label: "Rank", min: 0, max: 8, value: 3, format: p => String(2 ** p) });
  const adapted = Object.fromEntries(Object.keys(PARTS).map(name =>
    [name, figure.toggle({ label: name, value: ["self", "mlp", "cross"].includes(name) })]));
  const whole = figure.toggle({ label: "Train every number instead" });

  // A pair of matrices has rank times (inputs + outputs) numbers.
  const numbersOf = name => {
    const [layers, matrices] = PARTS[name];
    return 2 ** power.value * layers * matrices.reduce((sum, [inputs, outputs]) => sum + inputs + outputs, 0);
  };
  const taken = () => Object.keys(PARTS).filter(name => adapted[name].value);

  function cost() {
    if (whole.value)  // of all numbers in fp32, with nothing beside them
      return { weights: 4 * WEIGHTS, adapter: 0, gradients: 4 * WEIGHTS, optimiser: 8 * WEIGHTS };
    const n = taken().reduce((sum, name) => sum + numbersOf(name), 0);
    const itemsize = dtype.value === "bf16" ? 2 : 4;
    return { weights: itemsize * WEIGHTS, adapter: 4 * n, gradients: 4 * n, optimiser: 8 * n };
  }
  const total = () => Object.values(cost()).reduce((a, b) => a + b, 0);
  const left = () => Object.fromEntries(Object.entries(CARDS).map(([card, mib]) =>
    [card, (1 - FREE) * mib / 1024 - total() / GIB]));

  const INKS = { weights: "blue", adapter: "orange", gradients: "green", optimiser: "purple" };
  figure.drawing({ width: 320, height: 236 }, svg => {
    const most = Math.max(CARDS.H100 / 1024, total() / GIB), at = gib => 10 + 300 * gib / most;
    svg.text(10, 14, "on each card");
    Object.entries(CARDS).forEach(([card, mib], row) => {
      const y = 42 + 52 * row, room = left()[card];
      let before = 0;
      svg.text(10, y - 6, `${card}, ${(mib / 1024).toFixed(1)} GiB: ${room >= 0
        ? `${room.toFixed(1)} left` : `${(-room).toFixed(1)} too much`}`);
      for (const [name, bytes] of Object.entries(cost())) {
        svg.rect(at(before), y + 3, at(bytes / GIB) - 10, 18, { fill: INKS[name] });
        before += bytes / GIB;
      }
      svg.rect(10, y, at(mib / 1024) - 10, 24, { ink: "ink", "stroke-width": 2 });
      const usable = at((1 - FREE) * mib / 1024);
      svg.line(usable, y, usable, y + 24, { "stroke-dasharray": "3 2" });
    });
  });

  figure.drawing({ width: 320, height: 236 }, svg => {
    svg.text(10, 14, "of what");
    const rows = Object.entries(cost());
    const most = Math.max(...rows.map(([, bytes]) => bytes));
    rows.forEach(([name, bytes], row) => {
      const y = 42 + 52 * row, label = name === "optimiser" ? "averages (optimiser)" : name;
      svg.text(10, y - 6, `${label}: ${(bytes / GIB).toFixed(2)} GiB`);
      svg.rect(10, y, 300 * bytes / most, 24, { fill: INKS[name] });
    });
  });

  figure.values(() => ({ ...cost(), left: left() }));

  figure.words(() => {
    const gib = bytes => (bytes / GIB).toFixed(2), { weights } = cost(), more = total() - weights;
    const fits = Object.keys(CARDS).filter(card => left()[card] > 0);
    const what = whole.value ? "every number trains, in fp32" : !taken().length ? "nothing is adapted"
      : `rank ${2 ** power.value} at ${taken().join(", ")}`;
    const held = `${gib(weights)} GiB of weights and ${gib(more)} GiB for what trains: ${gib(total())} GiB`;
    const room = !fits.length ? "No card here has room for that, activations apart."
      : `The smallest card with room for it is the ${fits[0]}, with ${left()[fits[0]].toFixed(1)} GiB left for `
        + "activations if a twentieth, right of the dashes, stays free.";
    return `${what[0].toUpperCase()}${what.slice(1)}: ${held}. ${room}`;
  });
});
