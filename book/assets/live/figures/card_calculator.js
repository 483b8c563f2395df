"use strict";
// Chapter 10: what the 11B needs of a card, in bytes and in bytes a second. Writing waits for memory, so rows
// beside each other are nearly free, until their caches are as large as the weights or no longer fit.
mllama.figure("card_calculator", figure => {
  // Memory in MiB as the driver shows it (chapter 14); bandwidth and bf16 arithmetic, dense, by the data sheets.
  const CARDS = {
    "L4": { mib: 23034, bandwidth: 300e9, flops: 121e12 },
    "RTX 4090": { mib: 24564, bandwidth: 1008e9, flops: 165e12 },
    "L40S": { mib: 46068, bandwidth: 864e9, flops: 362e12 },
    "H100": { mib: 81559, bandwidth: 3350e9, flops: 989e12 },
  };
  // The 11B's letters; V is of an image of four tiles, and S and C count self- and cross-attention layers.
  const D = 4096, G = 8, E = 128, F = 14336, S = 32, C = 8, W = 128256, V = 4 * 1601, SIZE = 2, GiB = 2 ** 30;
  const PARAMETERS = 10670220835;  // counted in chapter 9
  const VISION = { width: 1280, mlp: 5120, kept: 2 + 5, out: 7680 };

  const card = figure.choice({ label: "Card", options: Object.keys(CARDS), value: "RTX 4090" });
  const power = (label, min, max, value) => figure.slider({ label, min, max, value,
    format: n => (2 ** n).toLocaleString("en") });
  const length = power("Tokens a row", 6, 17, 13);
  const images = figure.slider({ label: "Images a row", min: 0, max: 4, value: 4 });
  const rows = power("Rows at once", 0, 8, 0);

  const keysAndValues = 2 * G * E * SIZE;  // bytes of one token in one layer

  // Bytes held: those of `memory_needs`, with the caches of every row. Prompts are taken in one by one.
  function held() {
    const T = 2 ** length.value, B = 2 ** rows.value, seen = images.value * V;
    const encoding = seen * (VISION.kept * VISION.width + Math.max(2 * VISION.mlp, 5 * VISION.width));
    const handing = seen * (2 * VISION.out + D);
    return {
      "weights": PARAMETERS * SIZE,
      "text cache": B * T * S * keysAndValues,
      "image cache": B * seen * C * keysAndValues,
      "working": Math.max(T * (3 * F + 4 * D), encoding, handing) * SIZE,
    };
  }

  // A pass that takes in `tokens` of each of B rows and ends at T tokens: FLOPs and bytes moved. Without
  // images the cross-attention layers are skipped; their keys and values of images are never computed anew.
  function pass(tokens, B, headTokens) {
    const T = 2 ** length.value, layers = images.value ? C : 0;
    const own = 2 * D * D + 2 * D * G * E + 3 * D * F, cross = 2 * D * D + 3 * D * F;
    const norms = S * 2 * D + layers * (2 * D + E + 2) + D;
    const aToken = 2 * (S * own + layers * cross) + layers * 4 * D * images.value * V;
    const pairs = tokens * T * 4 * D * S;
    return {
      flops: B * (headTokens * 2 * D * W + tokens * aToken + pairs),
      bytes: SIZE * (S * own + layers * cross + norms + D * W)
        + B * (images.value * V * layers + T * S) * keysAndValues,
    };
  }
  const step = () => pass(1, 2 ** rows.value, 1);
  const prompt = () => pass(2 ** length.value, 1, 1);
  const seconds = ({ flops, bytes }) => {
    const { bandwidth, flops: peak } = CARDS[card.value];
    return { moving: bytes / bandwidth, computing: flops / peak };
  };
  const slower = work => Math.max(...Object.values(seconds(work)));
  const total = () => Object.values(held()).reduce((a, b) => a + b, 0) / GiB;
  const room = () => 0.95 * CARDS[card.value].mib / 1024;
  const rate = () => 2 ** rows.value / slower(step());
  const several = number => (number < 10 ? number.toFixed(1) : Math.round(number).toLocaleString("en"));

  const PARTS = [["weights", "blue"], ["text cache", "green"], ["image cache", "purple"], ["working", "orange"]];
  figure.drawing({ width: 300, height: 250 }, svg => {
    const parts = held(), size = CARDS[card.value].mib / 1024, scale = 290 / Math.max(total(), size);
    svg.text(0, 14, `Memory: ${total().toFixed(2)} GiB`);
    let x = 0;
    for (const [name, ink] of PARTS) {
      const width = parts[name] / GiB * scale;
      svg.rect(x, 30, width, 40, { fill: ink, "fill-opacity": 0.75 });
      x += width;
    }
    svg.rect(0, 26, size * scale, 48, { ink: "ink", "stroke-width": 1.5 });
    svg.line(room() * scale, 22, room() * scale, 78, { "stroke-dasharray": "4 3", width: 2 });
    const fits = total() <= room();
    svg.text(0, 98, `${card.value}: ${size.toFixed(1)} GiB, 95 % of it ${room().toFixed(1)}: `
      + `${fits ? "fits" : "too small"}`, { fill: fits ? "ink" : "orange" });
    PARTS.forEach(([name, ink], i) => {
      svg.rect(0, 116 + 24 * i, 14, 14, { fill: ink, "fill-opacity": 0.75 });
      svg.text(24, 128 + 24 * i, name);
      svg.text(200, 128 + 24 * i, `${(parts[name] / GiB).toFixed(2)} GiB`, { anchor: "end" });
    });
    svg.text(0, 236, "Frame: the card; dashed: 95 % of it", { size: 12 });
  });

  // A roofline: how much arithmetic a second is possible when each byte is used for so many FLOPs.
  figure.drawing({ width: 320, height: 250 }, svg => {
    const { bandwidth, flops: peak } = CARDS[card.value];
    const x = intensity => 38 + 68 * Math.log10(intensity / 0.5), y = flops => 205 - 45 * Math.log10(flops / 1e11);
    const bound = intensity => Math.min(peak, bandwidth * intensity);
    const dots = [["step", step(), "blue"], ["prompt", prompt(), "green"]].map(
      ([name, work, ink]) => [name, Math.min(Math.max(work.flops / work.bytes, 0.5), 5000), ink]);
    svg.text(0, 14, "TFLOP/s that are possible");
    for (const t of [0.1, 1, 10, 100, 1000]) {
      svg.line(38, y(t * 1e12), 310, y(t * 1e12), { ink: "grey", width: 0.4 });
      svg.text(33, y(t * 1e12) + 4, t, { anchor: "end", size: 12 });
    }
    for (const i of [1, 10, 100, 1000]) svg.text(x(i), 223, i, { anchor: "middle", size: 12 });
    svg.text(310, 243, "FLOPs for each byte moved", { anchor: "end", size: 12 });
    const ridge = peak / bandwidth;
    svg.path([[x(0.5), y(bound(0.5))], [x(ridge), y(peak)], [x(5000), y(peak)]], { width: 3 });
    svg.line(x(ridge), y(peak), x(ridge), 205, { ink: "grey", "stroke-dasharray": "3 3" });
    svg.text(x(ridge) + 4, 200, Math.round(ridge), { size: 12 });
    for (const [name, intensity, ink] of dots) {
      const [left, top] = [x(intensity), y(bound(intensity))];
      svg.circle(left, top, 7, { fill: ink });
      if (name === "step" && left > 75) svg.text(left - 10, top - 6, name, { anchor: "end" });
      else svg.text(left + (left > 260 ? 6 : 11), top + 22, name, { anchor: left > 260 ? "end" : "start" });
    }
  });

  figure.values(() => ({ held: held(), step: step(), prompt: prompt(), rate: rate(), fits: total() <= room(),
    promptSeconds: slower(prompt()) }));

  figure.words(() => {
    const { moving, computing } = seconds(step()), B = 2 ** rows.value, gb = step().bytes / 1e9;
    const fits = total() <= room() ? "which fits" : `more than the ${room().toFixed(1)} that may be filled`;
    const waits = moving > computing ? "it waits for memory" : "it waits for arithmetic";
    return `${card.value}: ${total().toFixed(2)} GiB, ${fits}. A step moves ${gb.toFixed(1)} GB in `
      + `${(1000 * moving).toFixed(1)} ms and computes for ${(1000 * computing).toFixed(1)} ms: ${waits}, and writes at most `
      + `${several(rate())} tokens a second${B > 1 ? `, ${several(rate() / B)} in each of ${B} rows` : ""}. The prompt of a row `
      + `takes at least ${slower(prompt()).toFixed(2)} s besides its images. Nothing here was measured.`;
  });
});
