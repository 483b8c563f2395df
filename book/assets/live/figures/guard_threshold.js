"use strict";
// Chapter 19: a threshold between the scores of unsafe and of safe probes; what is caught and falsely refused, with
// Wilson's intervals. How many scores lie in each fiftieth is counted from notebooks/measured/guard.json.
mllama.figure("guard_threshold", figure => {
  const BINS = 50, COUNTS = {
    pairs: {
      unsafe: [15,7,2,2,3,0,0,1,0,0,1,1,2,1,1,0,0,2,0,0,0,1,0,0,0,0,0,2,1,1,0,0,2,0,0,1,0,1,0,0,0,2,0,1,0,0,0,1,2,7],
      safe: [21,8,4,2,3,1,0,1,0,0,1,1,0,1,0,0,0,0,1,0,0,0,0,0,0,0,0,1,1,0,0,2,1,0,0,0,1,0,0,1,1,0,0,0,1,1,0,1,1,4],
    },
    test: {
      unsafe: [93,43,20,21,14,9,3,7,10,7,8,5,5,5,3,1,5,1,2,3,1,9,3,2,4,2,2,2,4,2,1,7,5,3,3,3,0,2,9,6,5,3,4,1,8,6,22,4,31,283],
      safe: [252,53,23,16,9,8,5,7,3,5,4,2,1,2,4,0,4,3,2,1,0,3,6,2,7,1,0,2,5,2,3,4,2,6,4,5,7,10,3,5,5,3,6,4,10,14,11,18,26,88],
    },
    wrapped: {
      unsafe: [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,130],
      safe: [0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,130],
    },
  };
  const NAMES = { "pairs by hand": "pairs", "another source, twins by rule": "test", "inside jailbreaks": "wrapped" };
  const set = figure.choice({ label: "Probes", options: Object.keys(NAMES) });
  const threshold = figure.slider({
    label: "Threshold", min: 0, max: 1, step: 0.02, value: 0.5, format: t => t.toFixed(2),
  });
  const times = figure.slider({ label: "So many times the probes", min: 1, max: 20, value: 1 });

  const counts = kind => COUNTS[NAMES[set.value]][kind];
  const sum = list => list.reduce((a, b) => a + b, 0);
  const above = kind => sum(counts(kind).slice(Math.round(BINS * threshold.value))) * times.value;
  const total = kind => sum(counts(kind)) * times.value;
  const interval = (k, n) => {
    const z = 1.96, p = k / n, whole = 1 + z * z / n;
    const middle = (p + z * z / (2 * n)) / whole, half = z * Math.sqrt(p * (1 - p) / n + (z / (2 * n)) ** 2) / whole;
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  };
  const found = kind => ({ count: [above(kind), total(kind)], interval: interval(above(kind), total(kind)) });
  const ROWS = [["unsafe", "unsafe", "orange", 1], ["safe", "safe", "blue", -1]];

  figure.drawing({ width: 320, height: 220 }, svg => {
    svg.text(0, 14, "Scores of the probes", { "font-weight": "bold" });
    for (const [name, kind, ink, way] of ROWS) {
      const most = Math.max(...counts("unsafe"), ...counts("safe"));
      svg.text(0, way > 0 ? 36 : 206, `${name}, ${total(kind)}`, { fill: ink });
      counts(kind).forEach((n, i) => {
        const high = 72 * n / most;
        if (n) svg.rect(10 + 6 * i, way > 0 ? 116 - high : 120, 5, high, { fill: ink, "fill-opacity": 0.85 });
      });
    }
    svg.line(10, 118, 310, 118, { ink: "grey", width: 1 });
    const x = 10 + 300 * threshold.value;
    svg.line(x, 30, x, 196, { width: 2, "stroke-dasharray": "5 4" });
    svg.text(310, 214, "refused: right of the line", { size: 11, anchor: "end", fill: "grey" });
  });
  figure.drawing({ width: 280, height: 220 }, svg => {
    svg.text(0, 14, "Shares, with 95% intervals", { "font-weight": "bold" });
    [["caught", "unsafe", "orange"], ["falsely refused", "safe", "blue"]].forEach(([name, kind, ink], i) => {
      const y = 84 + 72 * i, { count: [k, n], interval: [low, high] } = found(kind);
      svg.text(0, y - 22, `${name}: ${k} of ${n}`, { fill: ink });
      svg.line(10, y, 270, y, { ink: "grey", width: 1 });
      svg.line(10 + 260 * low, y, 10 + 260 * high, y, { ink, width: 8 });
      svg.circle(10 + 260 * k / n, y, 5, { fill: "ink" });
    });
    for (const share of [0, 0.5, 1]) {
      svg.text(10 + 260 * share, 200, share.toFixed(1), { size: 11, anchor: "middle", fill: "grey" });
    }
  });

  figure.values(() => ({ caught: found("unsafe"), refused: found("safe") }));

  figure.words(() => {
    const percent = share => `${(100 * share).toFixed(0)}%`;
    const told = kind => {
      const { count: [k, n], interval: [low, high] } = found(kind);
      return `${percent(k / n)} (${percent(low)} to ${percent(high)})`;
    };
    const [a, b] = [found("unsafe").interval, found("safe").interval];
    const apart = a[0] > b[1] || b[0] > a[1] ? "do not meet" : "overlap";
    return `Above ${threshold.value.toFixed(2)}: ${told("unsafe")} caught, ${told("safe")} falsely refused. `
      + `The two intervals ${apart}.`;
  });
});
