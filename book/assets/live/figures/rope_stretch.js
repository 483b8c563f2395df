"use strict";
// Chapter 2: in a context longer than the trained one, slow pairs reach angles at which nothing was
// learned. Dividing their speed brings them back, as far as the factor goes and no further.
mllama.figure("rope_stretch", figure => {
  const PAIRS = 64, TRAINED = 8192, LOW = 1, HIGH = 4, TURN = 2 * Math.PI;
  const WAYS = ["no pair", "the slow pairs", "every pair"];
  const plain = mllama.ropeFrequencies(2 * PAIRS, 500000);
  const trained = Array.from(plain, speed => TRAINED * speed / TURN);  // turns

  const number = value => value.toLocaleString("en");
  const context = figure.slider({
    label: "Context", min: TRAINED, max: 16 * TRAINED, step: TRAINED, value: 16 * TRAINED, format: number,
  });
  const way = figure.choice({ label: "Divide the speed of", options: WAYS });
  const factor = figure.slider({ label: "by a factor of", min: 1, max: 32, value: 8 });
  const chosen = figure.slider({ label: "Pair", min: 0, max: PAIRS - 1, value: 40 });

  // The chapter's formula; radians a position, by pair.
  function speeds() {
    return Array.from(plain, (speed, i) => {
      if (way.value === WAYS[0]) return speed;
      const kept = Math.min(Math.max((trained[i] - LOW) / (HIGH - LOW), 0), 1);
      const keep = way.value === WAYS[1] ? kept : 0;
      return (1 - keep) * speed / factor.value + keep * speed;
    });
  }

  // How often each pair goes round in the context, and the share of its circle that is new then.
  function state() {
    const speed = speeds(), reached = speed.map(s => context.value * s / TURN);
    const fresh = reached.map((turns, i) =>
      (turns > trained[i] * (1 + 1e-5) ? Math.max(Math.min(turns, 1) - trained[i], 0) : 0));
    return { speed, trained, reached, fresh, count: fresh.filter(share => share > 0).length };
  }

  const arc = (x, y, r, from, to) => Array.from({ length: 65 }, (_, n) => {
    const angle = TURN * (from + (to - from) * n / 64);
    return [x + r * Math.cos(angle), y - r * Math.sin(angle)];
  });

  // A sector, filled, of what was seen in training; outside it an arc of what is new.
  function dial(svg, x, y, r, i, { fresh }) {
    const known = Math.min(trained[i], 1), width = r / 3;
    svg.circle(x, y, r, { ink: "grey", "stroke-width": 0.7 });
    svg.path([[x, y], ...arc(x, y, r, 0, known), [x, y]],
      { ink: "blue", fill: "blue", "fill-opacity": 0.4, width: known < 1 ? 1.2 : 0.7 });
    if (fresh[i]) svg.path(arc(x, y, r, known, known + fresh[i]), { ink: "orange", width });
  }

  const all = figure.drawing({ width: 320, height: 330 }, svg => {
    const now = state();
    for (let i = 0; i < PAIRS; i++) {
      const x = 44 + 37 * (i % 8), y = 22 + 37 * Math.floor(i / 8);
      if (i % 8 === 0) svg.text(18, y + 5, i, { anchor: "end" });
      dial(svg, x, y, 12, i, now);
      if (i === chosen.value) svg.rect(x - 18, y - 18, 36, 36, { ink: "ink", "stroke-width": 2 });
      svg.rect(x - 18, y - 18, 36, 36, { style: "pointer-events: all; cursor: pointer", "data-pair": i });
    }
    svg.text(26, 324, `64 pairs, 8 a row; ${now.count} with new angles`);
  });
  all.svg.addEventListener("click", event => {
    const pair = event.target.closest("[data-pair]");
    if (pair) chosen.value = Number(pair.dataset.pair);
  });

  const turns = value => value.toPrecision(3);
  const percent = share => (share > 0 && share < 0.01 ? "under 1\u00a0%" : `${Math.round(100 * share)}\u00a0%`);

  figure.drawing({ width: 230, height: 330 }, svg => {
    const i = chosen.value, now = state(), x = 115, y = 112, r = 72;
    svg.text(x, 18, `Pair ${i}`, { anchor: "middle", size: 15 });
    dial(svg, x, y, r, i, now);
    const angle = TURN * now.reached[i];
    svg.line(x, y, x + r * Math.cos(angle), y - r * Math.sin(angle), { width: 3 });
    const speed = now.speed[i], lines = [
      ["ink", "hand: the end of the context"],
      ["blue", `sector: ${turns(trained[i])} turns in training`],
      ["orange", `arc: ${percent(now.fresh[i])} of the circle is new`],
      ["ink", `${turns(now.reached[i])} turns in the context`],
      ["ink", `a turn in ${number(Math.round(TURN / speed))} positions`],
    ];
    lines.forEach(([fill, text], n) => svg.text(10, 224 + 21 * n, text, { fill }));
  });

  figure.values(state);

  figure.words(() => {
    const now = state(), i = chosen.value;
    const divided = way.value === WAYS[0] ? "no speed divided"
      : `the speed of ${way.value} divided by ${factor.value}`;
    return `${number(context.value)} positions, ${divided}: ${now.count || "none"} of the 64 pairs `
      + "meet angles they never met in training on 8,192, and one position turns the fastest pair "
      + `by ${(360 * now.speed[0] / TURN).toFixed(1)}°. Pair ${i} made ${turns(trained[i])} turns in `
      + `training and makes ${turns(now.reached[i])} now; ${percent(now.fresh[i])} of its circle is new.`;
  });
});
