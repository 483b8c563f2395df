"use strict";
// Chapter 13: samples, batch, accumulation and epochs decide how many steps there are, what each sees
// and at which rate it moves; a larger batch has fewer steps, so all of them together move less.
mllama.figure("steps_of_a_training", figure => {
  const MASK64 = (1n << 64n) - 1n, MASK128 = (1n << 128n) - 1n;
  const SLOPE = 0x2360ED051FC65DA44385DF649FCCF645n;

  // numpy's default_rng(words), as far as an order needs it: whole numbers of 32 bits.
  function numbers(words) {
    let constant = 0x43b0d7e5;
    const scrambled = (value, factor) => {
      value ^= constant;
      constant = Math.imul(constant, factor);
      value = Math.imul(value, constant);
      return value ^ (value >>> 16);
    };
    const pool = [0, 1, 2, 3].map(i => scrambled(words[i] ?? 0, 0x931e8875));
    for (let from = 0; from < 4; from++) for (let to = 0; to < 4; to++) if (from !== to) {
      const other = scrambled(pool[from], 0x931e8875);
      const mixed = Math.imul(0xca01f9dd, pool[to]) - Math.imul(0x4973f715, other);
      pool[to] = mixed ^ (mixed >>> 16);
    }
    constant = 0x8b51f9dd;
    const seeds = Array.from({ length: 8 }, (_, i) => BigInt(scrambled(pool[i % 4], 0x58f38ded) >>> 0));
    const wide = i => (((seeds[i + 1] << 32n) | seeds[i]) << 64n) | (seeds[i + 3] << 32n) | seeds[i + 2];
    const odd = ((wide(4) << 1n) | 1n) & MASK128;
    let state = ((odd + wide(0)) * SLOPE + odd) & MASK128, upper = null;
    return () => {
      if (upper !== null) {
        const kept = upper;
        upper = null;
        return kept;
      }
      state = (state * SLOPE + odd) & MASK128;
      const word = (state >> 64n) ^ (state & MASK64), turn = state >> 122n;
      const turned = ((word >> turn) | (word << ((64n - turn) & 63n))) & MASK64;
      upper = Number(turned >> 32n);
      return Number(turned & 0xffffffffn);
    };
  }

  // The order of an epoch, as adapters/data.py draws it.
  function order(seed, epoch, count) {
    const next = numbers([seed, 2, epoch + 1]), order = Array.from({ length: count }, (_, i) => i);
    for (let i = count - 1; i > 0; i--) {
      const mask = (1 << (32 - Math.clz32(i))) - 1;
      let j = next() & mask;
      while (j > i) j = next() & mask;
      [order[i], order[j]] = [order[j], order[i]];
    }
    return order;
  }

  const samples = figure.slider({ label: "Samples", min: 1, max: 40, value: 7 });
  const batch = figure.slider({ label: "Batch", min: 1, max: 8, value: 3 });
  const accumulate = figure.slider({ label: "Batches a step", min: 1, max: 4, value: 1 });
  const epochs = figure.slider({ label: "Epochs", min: 1, max: 6, value: 2 });
  const warmup = figure.slider({ label: "Warm-up", min: 0, max: 0.5, step: 0.05, value: 0.2,
    format: share => `${Math.round(100 * share)} %` });
  const seed = figure.slider({ label: "Seed", min: 0, max: 9, value: 0 });
  const step = figure.slider({ label: "Step", min: 1, max: 5, value: 3 });

  // Of every step the samples and its share of the highest rate.
  function plan() {
    const count = samples.value, size = Math.min(batch.value * accumulate.value, count);
    const steps = Math.ceil(epochs.value * count / size), half = warmup.value * steps;
    // Python rounds a half to the even neighbour.
    const rising = half % 1 === 0.5 ? 2 * Math.round(half / 2) : Math.round(half);
    const all = Array.from({ length: epochs.value }, (_, e) => order(seed.value, e, count)).flat();
    return Array.from({ length: steps }, (_, i) => ({
      samples: all.slice(i * size, (i + 1) * size),
      rate: i < rising ? (i + 1) / rising : (1 + Math.cos(Math.PI * (i - rising) / (steps - rising))) / 2,
    }));
  }
  const chosen = steps => Math.min(step.value, steps.length) - 1;
  for (const control of [samples, batch, accumulate, epochs]) control.input.addEventListener("input", () => {
    step.input.max = plan().length;
    step.value = step.input.value;  // what the slider now allows
  });

  const drawn = { width: 320, height: 150 };
  figure.drawing(drawn, svg => {
    const steps = plan(), wide = 300 / steps.length;
    svg.text(10, 14, "rate of each step");
    steps.forEach(({ rate }, i) => {
      const x = 10 + i * wide, height = 100 * rate;
      svg.rect(x, 125 - height, Math.max(wide - 1.5, 0.5), Math.max(height, 0.5), {
        fill: i === chosen(steps) ? "blue" : "orange", "data-drag": "step" });
    });
    svg.line(10, 125, 310, 125);
    svg.text(10, 144, "1");
    svg.text(310, 144, `step ${steps.length}`, { anchor: "end" });
  }).onDrag((_, x) => {
    step.value = Math.min(Math.max(Math.ceil((x - 10) / 300 * plan().length), 1), plan().length);
  });

  figure.drawing(drawn, svg => {
    const steps = plan(), at = chosen(steps), count = samples.value;
    const before = steps.slice(0, at).reduce((sum, one) => sum + one.samples.length, 0);
    svg.text(10, 14, `samples of step ${at + 1}, batch by batch`);
    steps[at].samples.forEach((sample, i) => {
      const place = i % batch.value, row = Math.floor(i / batch.value), epoch = Math.floor((before + i) / count);
      const x = 10 + 38 * place, y = 24 + 31 * row;
      svg.rect(x, y, 34, 26, { ink: epoch % 2 ? "green" : "purple", "stroke-width": 2,
        "stroke-dasharray": epoch % 2 ? "4 2" : "none" });
      svg.text(x + 17, y + 18, sample, { anchor: "middle" });
    });
  });

  figure.values(() => plan());

  figure.words(() => {
    const steps = plan(), at = chosen(steps), count = samples.value, size = steps[0].samples.length;
    const begin = at * size, last = begin + steps[at].samples.length - 1;
    const from = Math.floor(begin / count) + 1, to = Math.floor(last / count) + 1;
    const twice = steps[at].samples.filter((one, i, all) => all.indexOf(one) < i);
    const sum = steps.reduce((sum, { rate }) => sum + rate, 0);
    const samplesOf = n => `${n} ${n === 1 ? "sample" : "samples"}`;
    const said = [`${epochs.value * count} samples in steps of ${size}: ${steps.length} steps, the last with `
      + `${samplesOf(steps.at(-1).samples.length)}.`,
    `Step ${at + 1} (blue) learns from ${steps[at].samples.join(", ")} `
      + (from === to ? `of epoch ${from}` : `of epochs ${from} (solid) and ${to} (dashed)`)
      + `, at ${Math.round(100 * steps[at].rate)} % of the highest rate.`];
    if (twice.length) said.push(`Sample ${twice.join(" and ")} is in it twice.`);
    if (size < batch.value * accumulate.value) said.push("A step holds at most all samples there are.");
    said.push(`All rates together are ${sum.toFixed(1)} times the highest: about as far as AdamW moves a number `
      + "that always goes one way.");
    return said.join(" ");
  });
});
