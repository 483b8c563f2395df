"use strict";
// Chapter 4: what norm and residual each hold together in a stack of layers with random weights:
// without norms the stream explodes or dies, without the residual all tokens become one.
mllama.figure("norm_and_residual", figure => {
  const LAYERS = 32, TOKENS = 8, WIDTH = 32, HIDDEN = 112, BEYOND = 1e6;
  const config = { rms_norm_eps: 1e-5, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 8 };
  const SHAPES = {
    "self_attn.q_proj": [32, WIDTH], "self_attn.k_proj": [16, WIDTH], "self_attn.v_proj": [16, WIDTH],
    "self_attn.o_proj": [WIDTH, 32], "mlp.gate_proj": [HIDDEN, WIDTH], "mlp.up_proj": [HIDDEN, WIDTH],
    "mlp.down_proj": [WIDTH, HIDDEN],
  };
  const CASES = [
    { norm: true, residual: true, ink: "blue", dashes: "none", name: "both" },
    { norm: true, residual: false, ink: "orange", dashes: "9 3", name: "norm only" },
    { norm: false, residual: true, ink: "green", dashes: "2 3", name: "residual only" },
    { norm: false, residual: false, ink: "purple", dashes: "9 3 2 3", name: "neither" },
  ];

  const depth = figure.slider({ label: "Layers passed", min: 0, max: LAYERS, value: 16 });
  const norm = figure.toggle({ label: "Norm", value: true });
  const residual = figure.toggle({ label: "Residual", value: false });
  const scale = figure.slider({
    label: "Size of the weights", min: 0.5, max: 2, step: 0.1, value: 1, format: v => `× ${v.toFixed(1)}`,
  });
  let seed = 1, states = null, made = null;  // `made`: the weights for which there are states
  figure.button({ label: "Other weights", press: () => { seed++; } });

  // Numbers of mean 0 and variance 1, the same on every machine.
  function random() {
    let state = Math.imul(seed, 2654435769) >>> 0;
    return () => {
      state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
      return Math.sqrt(3) * (2 * state / 2 ** 32 - 1);
    };
  }

  function build() {
    const next = random(), ones = new Float32Array(WIDTH).fill(1);
    const stream = Float32Array.from({ length: TOKENS * WIDTH }, next);
    const layers = Array.from({ length: LAYERS }, (_, i) => {
      const tensors = new Map();
      for (const part of ["input_layernorm", "post_attention_layernorm"])
        tensors.set(`.${part}.weight`, { shape: [WIDTH], data: ones });
      for (const [part, shape] of Object.entries(SHAPES)) {
        const size = scale.value / Math.sqrt(shape[1]);
        const data = Float32Array.from({ length: shape[0] * shape[1] }, () => size * next());
        tensors.set(`.${part}.weight`, { shape, data });
      }
      return new mllama.DecoderLayer(tensors, "", config, i);
    });
    return { stream, layers };
  }

  // States [T, D] before the layers and after each.
  function pass({ stream, layers }, { norm, residual }) {
    const positions = Array.from({ length: TOKENS }, (_, t) => t), found = [stream];
    const step = {
      angles: mllama.ropeCosSin(mllama.ropeFrequencies(config.head_dim, 500000), positions),
      cache: new mllama.KVCache(),
    };
    let hidden = stream;
    const branch = (before, part) => {
      const change = part.forward(norm ? before.forward(hidden) : hidden, step);
      hidden = residual ? mllama.add(hidden, change) : change;
    };
    for (const layer of layers) {
      branch(layer.input_layernorm, layer.self_attn);
      branch(layer.post_attention_layernorm, layer.mlp);
      found.push(hidden);
    }
    return found;
  }

  const row = (state, t) => state.subarray(t * WIDTH, (t + 1) * WIDTH);
  const dot = (x, y) => x.reduce((sum, v, i) => sum + v * y[i], 0);
  const size = state => Math.sqrt(dot(state, state) / state.length);

  function alike(state) {  // the mean cosine of two different tokens; NaN where there is none
    let sum = 0;
    for (let t = 0; t < TOKENS; t++) for (let s = 0; s < t; s++) {
      const x = row(state, t), y = row(state, s);
      sum += dot(x, y) / Math.sqrt(dot(x, x)) / Math.sqrt(dot(y, y));
    }
    return 2 * sum / (TOKENS * (TOKENS - 1));
  }

  function curves() {  // of all four cases
    const wanted = `${seed}, ${scale.value}`;
    if (made !== wanted) {
      const stack = build();
      made = wanted;
      states = CASES.map(one => {
        const passed = pass(stack, one);
        return { ...one, passed, size: passed.map(size), alike: passed.map(alike) };
      });
    }
    return states;
  }

  const current = () => curves().find(c => c.norm === norm.value && c.residual === residual.value);

  // The tokens as arrows: their first two numbers, the length on a scale of powers of ten.
  figure.drawing({ width: 240, height: 280 }, svg => {
    const state = current().passed[depth.value], x = 120, y = 124;
    const radius = length => 28 * Math.max(0, Math.log10(length) + 1);  // 0.1 is the centre
    for (const length of [1, 10, 100, 1000]) {
      svg.circle(x, y, radius(length), { ink: "grey", "stroke-width": 0.7 });
      svg.text(x, y + radius(length) - 3, length, { size: 12, anchor: "middle", fill: "grey" });
    }
    for (let t = 0; t < TOKENS; t++) {
      const [a, b] = row(state, t), length = Math.hypot(a, b), r = Math.min(radius(length), 120);
      if (!(length < BEYOND) || r === 0) continue;
      const to = [x + r * a / length, y - r * b / length];
      svg.line(x, y, ...to, { ink: current().ink, width: 2.5 });
      svg.circle(...to, 3.5, { fill: current().ink });
    }
    const rms = current().size[depth.value], gone = rms < 0.1 ? "below 0.1" : "exploded";
    if (!(rms >= 0.1 && rms < BEYOND)) svg.text(x, y - 40, gone, { anchor: "middle", size: 16 });
    svg.text(x, 258, `8 tokens after ${depth.value} layers:`, { anchor: "middle" });
    svg.text(x, 275, "their first two numbers", { anchor: "middle" });
  });

  function chart(title, ticks, y, read) {
    figure.drawing({ width: 260, height: 280 }, svg => {
      const left = 46, x = i => left + 6.4 * i;
      svg.text(left, 16, title);
      for (const [value, text] of ticks) {
        svg.line(left, y(value), x(LAYERS), y(value), { ink: "grey", width: 0.5 });
        svg.text(left - 5, y(value) + 4, text, { size: 12, anchor: "end" });
      }
      svg.line(x(depth.value), 28, x(depth.value), 220, { "stroke-dasharray": "3 3", width: 1 });
      for (const one of curves()) {
        const chosen = one === current(), shown = read(one).map((v, i) => [v, i]);
        const end = shown.findIndex(([v]) => !(v < BEYOND));
        const points = shown.slice(0, end < 0 ? undefined : end).map(([v, i]) => [x(i), y(v)]);
        svg.path(points, { ink: one.ink, width: chosen ? 4 : 1.5, "stroke-dasharray": one.dashes });
      }
      curves().forEach((one, i) => {
        const at = [4, 132][i % 2], y = 255 + 20 * Math.floor(i / 2), chosen = one === current();
        svg.line(at, y - 4, at + 24, y - 4,
          { ink: one.ink, width: chosen ? 4 : 1.5, "stroke-dasharray": one.dashes });
        svg.text(at + 30, y, one.name, { fill: one.ink, "font-weight": chosen ? "bold" : "normal" });
      });
      svg.text(x(LAYERS), 236, "layers", { size: 12, anchor: "end" });
      svg.text(left, 236, "0", { size: 12, anchor: "middle" });
    });
  }
  const clamped = (v, low, high) => Math.min(Math.max(v, low), high);
  chart("size of the stream (RMS)",
    [[1e-4, "0.0001"], [0.01, "0.01"], [1, "1"], [100, "100"], [1e4, "10,000"]],
    v => clamped(220 - 24 * (Math.log10(v) + 4), 28, 220), one => one.size);
  chart("how alike the tokens are (cosine)", [[0, "0"], [0.5, "0.5"], [1, "1"]],
    v => 200 - 160 * v, one => one.alike);

  figure.values(() => ({ seed, cases: curves().map(one => ({
    name: one.name, size: one.size, alike: one.alike, last: Array.from(one.passed[LAYERS]) })) }));

  figure.words(() => {
    const one = current(), rms = one.size[depth.value], cosine = one.alike[depth.value];
    const what = { both: "With norm and residual", neither: "With neither norm nor residual" }[one.name]
      ?? (one.norm ? "With the norm and no residual" : "With the residual and no norm");
    const told = !(rms < BEYOND) ? "has exploded: it is beyond a million, or no number any more"
      : rms === 0 ? "has died: all of it is zero"
        : `has size ${rms.toPrecision(2)}, and two tokens have a cosine of ${cosine.toFixed(2)} on average`;
    return `${what}, after ${depth.value} of ${LAYERS} layers, the stream ${told}. At its start it has size `
      + `${one.size[0].toFixed(2)}, and the cosine is ${one.alike[0].toFixed(2)}.`;
  });
});
