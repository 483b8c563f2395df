"use strict";
// Chapter 8: which cross-attention layer an answer hangs on. The gates of the trained model are
// turned; of every token of its answer we see how likely it still is, and where it is looked up.
mllama.figure("layer_gates", figure => {
  const { Session, argmax, drawLook, el, generate, imageToTiles, lookInWords, painted, pixelsOf,
    probabilities, watch } = mllama;
  const LAYERS = [1, 3, 5], HEADS = 4, WHICH = ["attention and MLP", "attention only", "MLP only"];
  const percent = v => `${v}\u00a0%`;

  const question = figure.choice({ label: "Question", options: ["What is in the picture?",
    "Which digit is green?", "What colour is the 9?", "How many digits are in the picture?",
    "Where is the star?", "What is below the 2?"] });
  const which = figure.choice({ label: "Gates that are turned", options: WHICH });
  const shares = LAYERS.map(layer => figure.slider({
    label: `Layer ${layer}`, min: 0, max: 150, step: 10, value: layer === 1 ? 0 : 100, format: percent }));
  const token = figure.slider({ label: "Token of the answer", min: 1, max: 1, value: 1 });

  let live = null, shown = null, asked = 0, busy = false;

  // Do something with the gates as the sliders say; they are as trained afterwards.
  function turned(run) {
    const scaled = live.model.crossAttentionLayers.flatMap((layer, i) => [
      ...(which.value === WHICH[2] ? [] : [layer.cross_attn_attn_gate]),
      ...(which.value === WHICH[1] ? [] : [layer.cross_attn_mlp_gate]),
    ].map(data => ({ data, share: shares[i].value / 100 })));
    const before = scaled.map(({ data }) => data[0]);
    try {
      for (const { data, share } of scaled) if (share !== 1) data[0] = Math.atanh(share * Math.tanh(data[0]));
      return run();
    } finally {
      scaled.forEach(({ data }, i) => { data[0] = before[i]; });
    }
  }

  const prompt = () => live.tokenizer.encodeChat([{ role: "user", content: [null, question.value] }]);
  const answer = () => [...generate(live.model, prompt(), [live.image],
    { stopIds: live.tokenizer.stopIds, maxNewTokens: 24 })].map(({ id }) => id);

  // Give the model an answer token by token: how likely each is, what it would rather say, and the
  // weights [H, V] of each layer.
  function given(ids) {
    const watched = watch(live.model), session = new Session(live.model);
    try {
      let logits = session.extend(prompt(), [live.image]);
      return ids.map(id => {
        const found = { id, likely: probabilities(logits)[id], rather: argmax(logits), looks: watched.latest() };
        logits = session.step(id);
        return found;
      });
    } finally {
      watched.stop();
    }
  }

  async function ask() {
    if (!live) return;
    const mine = ++asked;
    busy = true;
    figure.redraw();
    await painted();
    if (mine !== asked) return;  // another control was moved
    const trained = answer(), whole = given(trained);
    const [now, says] = turned(() => [given(trained), answer()]);
    shown = { trained, whole, now, says };
    if (Number(token.input.max) !== trained.length) {
      token.input.max = trained.length;
      token.value = 1;
    }
    busy = false;
    figure.redraw();
  }
  for (const { input } of [question, which, ...shares]) input.addEventListener("input", ask);

  const button = figure.button({ label: "Ask the model (loads 5 MB)", press: async () => {
    button.disabled = true;
    const loaded = await figure.model(), picture = el("img", { src: mllama.packed.pictures.mixed,
      alt: "A purple 6, a blue 2, a green 9 and a black star" });
    await picture.decode();
    const tiles = imageToTiles(pixelsOf(picture), loaded.config.vision_config.image_size);
    live = { ...loaded, picture, tiles, image: loaded.model.encodeImage(tiles) };
    picture.style.cssText = "width: 8rem; height: auto; flex: 0 0 auto";
    figure.panels.prepend(picture);
    await ask();
    button.remove();
  } });

  const named = id => (live.tokenizer.stopIds.has(id) ? "(end)"
    : live.tokenizer.decode([id]).trim() || "(space)");
  const place = () => Math.min(token.value, shown.trained.length) - 1;

  // How likely each token of the trained model's answer still is.
  const TOP = 42, ROW = 19;
  const bars = figure.drawing({ width: 320, height: 90 }, svg => {
    const rows = shown?.now ?? [], height = Math.max(90, TOP + ROW * rows.length + 4);
    svg.height = height;
    svg.svg.setAttribute("viewBox", `0 0 320 ${height}`);
    svg.text(0, 14, "How likely each token of the answer is:", { size: 12 });
    svg.text(0, 31, shown ? "bar: now; stroke: gates as trained" : "the model has not been asked", { size: 12 });
    rows.forEach(({ id, likely, rather }, n) => {
      const y = TOP + ROW * n;
      if (n === place()) svg.rect(0, y, 320, ROW, { ink: "orange", "stroke-width": 2 });
      svg.text(58, y + 14, named(id), { anchor: "end", size: 12 });
      svg.rect(64, y + 4, 140 * likely, ROW - 8, { fill: "blue" });
      const x = 64 + 140 * shown.whole[n].likely;
      svg.line(x, y + 2, x, y + ROW - 2, { ink: "ink", width: 2.5 });
      svg.text(211, y + 14, likely.toFixed(2) + (rather === id ? "" : `, now ${named(rather)}`), { size: 12 });
      svg.rect(0, y, 320, ROW, { "pointer-events": "all", "data-token": n, style: "cursor: pointer" });
    });
  });
  bars.svg.addEventListener("click", event => {
    if (event.target.dataset.token) token.value = Number(event.target.dataset.token) + 1;
  });

  // Where that token is looked up: a line for each layer, a map for each head.
  const canvases = LAYERS.map(() => Array.from({ length: HEADS }, () => {
    const canvas = el("canvas", { width: 1, height: 1 });
    canvas.setAttribute("role", "img");
    canvas.style.cssText = "width: 100%; height: auto";
    return canvas;
  }));
  const names = LAYERS.map(() => el("span", {}));
  const grid = el("div", {}, el("span", {}),
    ...Array.from({ length: HEADS }, (_, h) => el("span", {}, `head ${h}`)),
    ...LAYERS.flatMap((_, i) => [names[i], ...canvases[i]]));
  grid.style.cssText = "display: grid; grid-template-columns: 4rem repeat(4, minmax(0, 4.2rem)); "
    + "gap: 0.3rem; flex: 1 1 20rem; min-width: min(100%, 18rem); font-size: 0.85rem; align-items: center";
  figure.panel(grid, () => {
    LAYERS.forEach((layer, i) => {
      names[i].textContent = `layer\u00a0${layer}: ${percent(shares[i].value)}`;
      canvases[i].forEach((canvas, head) => {
        let told = "not asked";
        if (shown) told = lookInWords(drawLook(canvas, live.picture, live.tiles, shown.now[place()].looks[layer],
          live.model.config, head, 112), live.tiles.canvas[1] * 4);
        canvas.setAttribute("aria-label", `Layer ${layer}, head ${head}: ${told}`);
      });
    });
    grid.style.display = shown ? "grid" : "none";
  });

  figure.values(() => (shown && !busy ? {
    trained: live.tokenizer.decode(shown.trained), says: live.tokenizer.decode(shown.says),
    likely: shown.now.map(({ likely }) => likely), before: shown.whole.map(({ likely }) => likely), token: place(),
    looks: Object.fromEntries(LAYERS.map(layer => [layer, [...shown.now[place()].looks[layer]]])),
  } : null));

  figure.words(() => {
    const turnedTo = LAYERS.map((layer, i) => `layer ${layer} at ${percent(shares[i].value)}`).join(", ");
    const setting = `Gates (${which.value}): ${turnedTo} of what training made them.`;
    if (busy) return `${setting} Computing \u2026`;
    if (!shown) return `${setting} Press the button to ask the model.`;
    const all = steps => steps.reduce((product, { likely }) => product * likely, 1);
    const decode = ids => live.tokenizer.decode(ids) || "(nothing)", n = place();
    const [trained, says] = [decode(shown.trained), decode(shown.says)];
    const verdict = trained === says ? `The answer stays \u201c${trained}\u201d.`
      : `The answer \u201c${trained}\u201d becomes \u201c${says}\u201d.`;
    return `${setting} ${verdict} Probability of the old answer, as trained `
      + `${all(shown.whole).toFixed(2)}, now ${all(shown.now).toFixed(2)}; of its token ${n + 1}, `
      + `\u201c${named(shown.trained[n])}\u201d, after those before it: `
      + `${shown.whole[n].likely.toFixed(2)}, now ${shown.now[n].likely.toFixed(2)}.`;
  });
});
