"use strict";
// Chapter 6: where a patch looks in the trained encoder, head by head, padding included and at an
// absolute scale: in the first layer most heads look at padding, and so at nothing.
mllama.figure("patch_looks", figure => {
  const { attentionByHand, el, imageToTiles, pixelsOf, realTokensFirst, reorder } = mllama;
  const TILE = 56, SIDE = 4, P = 17, PADDED = 24, K = 4, HEADS = 4, FULL = 0.2, PATCHES = SIDE * SIDE;
  const PICTURES = { "Digits and shapes": "mixed", "Three digits": "digits", "A single digit": "one",
    "A tall picture": "tall" };

  const chosen = figure.choice({ label: "Picture", options: Object.keys(PICTURES) });
  const row = figure.slider({ label: "Row", min: 0, max: 7, value: 2 });
  const column = figure.slider({ label: "Column", min: 0, max: 7, value: 2 });
  const layer = figure.slider({ label: "Layer", min: 0, max: 3, value: 0 });
  const bare = figure.toggle({ label: "Without padding" });
  const own = figure.toggle({ label: "Each map at its own scale" });

  const images = {}, states = {};
  let now = null, live = null, run = 0, doing = "The picture is being fetched.";

  // The tokens that enter each layer, real ones first, with the padding or without.
  function layerInputs({ name, tiles, order, bare }) {
    const key = `${name} ${bare}`, { model: { vision_model: vision } } = live;
    if (!states[key]) {
      const size = vision.config.hidden_size, numReal = tiles.numTiles * P, kept = states[key] = [];
      let x = reorder(vision.embed(tiles), order, size);
      if (bare) x = x.slice(0, numReal * size);
      for (const each of vision.transformer.layers) {
        kept.push(x);
        x = each.forward(x, numReal);
      }
    }
    return states[key];
  }

  // Weights of the chosen patch, for each head [K * padded P]; equal ones before there is a model.
  function weights() {
    const { tiles: { canvas: [, columns], numTiles }, order, place: [down, across] } = now;
    const count = now.bare ? numTiles * P : K * PADDED;
    const found = Array.from({ length: HEADS }, () => new Array(K * PADDED).fill(0));
    const tile = Math.floor(down / SIDE) * columns + Math.floor(across / SIDE);
    const query = tile * P + 1 + (down % SIDE) * SIDE + across % SIDE;  // among the real tokens
    let flat = new Array(HEADS * count).fill(1 / count);
    if (live) {
      const { input_layernorm: norm, self_attn } = live.model.vision_model.transformer.layers[now.layer];
      const x = norm.forward(layerInputs(now)[now.layer]), size = x.length / count;
      const key = self_attn.k_proj.forward(x);
      const asking = self_attn.q_proj.forward(x.slice(query * size, (query + 1) * size));
      flat = attentionByHand(asking, key, key, self_attn.headDim, HEADS, HEADS).weights;
    }
    for (let h = 0; h < HEADS; h++)
      for (let s = 0; s < count; s++) found[h][order[s]] = flat[h * count + s];
    return found;
  }

  const sum = list => list.reduce((a, b) => a + b, 0), percent = share => `${Math.round(100 * share)} %`;
  const precise = share => `${Number((100 * share).toPrecision(2))} %`;

  // A head's weights by what is looked at: patches [tile, patch], and lists of the others.
  function sorted(head) {
    const valid = now.tiles.numTiles, all = [...head.keys()], tileOf = i => Math.floor(i / PADDED);
    const pick = keep => all.filter(keep).map(i => head[i]);
    return {
      patches: pick(i => tileOf(i) < valid && i % PADDED > 0 && i % PADDED < P),
      "class tokens": pick(i => tileOf(i) < valid && i % PADDED === 0),
      filler: pick(i => tileOf(i) < valid && i % PADDED >= P), "empty tiles": pick(i => tileOf(i) >= valid),
    };
  }

  const toPadding = parts => sum(parts.filler) + sum(parts["empty tiles"]);

  async function update() {
    const mine = ++run, name = PICTURES[chosen.value];
    await figure.packed();
    images[name] ??= el("img", { src: mllama.packed.pictures[name] });
    await images[name].decode();
    if (mine !== run) return;
    const tiles = imageToTiles(pixelsOf(images[name]), TILE), order = realTokensFirst(tiles.numTiles, K, P);
    [row, column].forEach((control, i) => {  // another canvas has other rows and columns
      const most = tiles.canvas[i] * SIDE - 1, value = Math.min(control.value, most);
      if (Number(control.input.max) === most) return;
      control.input.max = most;
      control.value = value;  // which updates anew
    });
    if (mine !== run) return;
    if (live && !states[`${name} ${bare.value}`]) {
      doing = "The model is looking.";
      figure.redraw();
      await mllama.painted();
      if (mine !== run) return;
    }
    doing = "";
    now = { name, tiles, order, bare: bare.value, place: [row.value, column.value], layer: layer.value };
    now.weights = weights();
    figure.redraw();
  }

  for (const { input } of [chosen, row, column, layer, bare]) input.addEventListener("input", update);
  const button = figure.button({ label: "Look with the model (loads 5 MB)", press: async () => {
    doing = "The model is being loaded.";
    figure.redraw();
    button.remove();
    live = await figure.model();
    await update();
  } });

  // The picture on its canvas, in a square of 140, with the asking patch outlined.
  function canvasOf(svg, top, overlay) {
    const { tiles: { canvas: [rows, columns], shown }, place: [down, across] } = now;
    const cell = 140 / SIDE / Math.max(rows, columns, 2), pixel = cell * SIDE / TILE;
    const wide = columns * SIDE * cell, tall = rows * SIDE * cell;
    svg.add("rect", { x: 0, y: top, width: wide, height: tall, style: "fill: #555" });
    svg.add("image", { href: images[now.name].src, x: 0, y: top, width: shown[1] * pixel, height: shown[0] * pixel,
      preserveAspectRatio: "none", style: "filter: grayscale(1)" });
    for (let k = 0; k < rows * columns; k++) for (let p = 0; p < PATCHES; p++) {
      const y = Math.floor(k / columns) * SIDE + Math.floor(p / SIDE), x = (k % columns) * SIDE + p % SIDE;
      overlay({ x: x * cell, y: top + y * cell, width: cell, height: cell }, k * PATCHES + p, y, x);
    }
    for (let r = 1; r < rows; r++) svg.line(0, top + r * SIDE * cell, wide, top + r * SIDE * cell);
    for (let c = 1; c < columns; c++) svg.line(c * SIDE * cell, top, c * SIDE * cell, top + tall);
    svg.rect(across * cell, top + down * cell, cell, cell,
      { ink: "blue", "stroke-width": 3, "pointer-events": "none" });
    return top + tall;
  }

  figure.drawing({ width: 150, height: 300 }, svg => {
    if (!now) return;
    svg.text(0, 14, "Click a patch");
    canvasOf(svg, 40, (box, _, y, x) => {
      svg.add("rect", { ...box, ink: "grey", "stroke-width": 0.5, style: "fill: transparent; cursor: pointer" })
        .addEventListener("click", () => { row.value = y; column.value = x; });
    });
  });

  for (let h = 0; h < HEADS; h++) figure.drawing({ width: 150, height: 300 }, svg => {
    if (!now) return;
    const parts = sorted(now.weights[h]), full = own.value ? Math.max(...parts.patches) : FULL;
    svg.text(0, 14, `Head ${h}: ${percent(toPadding(parts))} to padding`, { size: 12 });
    svg.text(0, 31, `full orange: ${precise(full)}`, { size: 12 });
    const bottom = canvasOf(svg, 40, (box, i) => svg.add("rect", { ...box, fill: "orange",
      "fill-opacity": 0.85 * Math.min(1, parts.patches[i] / full) }));
    Object.entries(parts).forEach(([name, list], part) => {
      const y = bottom + 17 + 28 * part, share = sum(list);
      svg.text(0, y, list.length ? `${name} ${percent(share)}` : `${name}: none`, { size: 12 });
      svg.rect(0, y + 4, 140, 7, { ink: "grey", "stroke-width": 0.5 });
      svg.rect(0, y + 4, 140 * share, 7, { fill: name === "patches" ? "orange" : "purple" });
    });
  });

  figure.values(() => now && { doing, loaded: live !== null, ...now, tiles: null, canvas: now.tiles.canvas });

  figure.words(() => {
    if (!now || doing) return doing;
    const [down, across] = now.place, even = now.bare ? 0 : 1 - now.tiles.numTiles * P / (K * PADDED);
    const heads = now.weights.map(sorted), shares = heads.map(parts => percent(toPadding(parts)));
    const most = heads.map(({ patches }) => precise(Math.max(...patches))).join(", ");
    const asking = `The patch in row ${down}, column ${across}`;
    if (!live) return `${asking}: before there is a model, equal weights, ${percent(even)} of them on padding.`;
    const padding = now.bare ? "without padding there is nowhere else to look"
      : `heads 0 to 3 give ${shares.join(", ")} of their attention to padding (equal weights: ${percent(even)})`;
    return `${asking}, in layer ${now.layer}: ${padding}, and to one patch at most ${most}.`;
  });

  update();
});
