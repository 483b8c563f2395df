"use strict";
// Chapter 7: what each part of the encoder's output carries, in the trained model. Parts are taken
// away, four questions about one picture are asked again; the logits show what answers hide.
mllama.figure("vision_parts", figure => {
  const { SWITCHES, el, generate, imageToTiles, painted, pixelsOf } = mllama;
  const QUESTIONS = ["Which digit is green?", "Where is the star?", "Read the digits from left to right.",
    "What is in the picture?"];
  const WHOLE = { kept: [true, true, true], gates: 1, tile: true, late: false };

  const kept = ["final state", "state of layer 1", "state of layer 3"].map((name, i) =>
    figure.toggle({ label: `Hand on the ${name}`, value: i === 0 }));
  const tile = figure.toggle({ label: "Post-tile embedding", value: true });
  const late = figure.toggle({ label: "Keep states late, after their layers", value: false });
  const gates = figure.slider({
    label: "Global gates", min: 0, max: 150, step: 10, value: 100, format: v => `${v} %` });
  const chosen = () => ({
    kept: kept.map(part => part.value), gates: gates.value / 100, tile: tile.value, late: late.value });

  let live = null, whole = null, now = null, asked = 0, busy = false;

  // The tokens that cross-attention will read, from an encoder that is damaged so; the model is
  // left as it was.
  function encode({ kept: handedOn, gates: share, tile: told, late: after }) {
    const { vision_model: vision, multi_modal_projector: projector, config } = live.model;
    const scaled = vision.global_transformer.layers.flatMap(layer =>
      [[layer.gate_attn, share], [layer.gate_ffn, share]]);
    scaled.push([vision.post_tile_positional_embedding.gate, told ? 1 : 0]);
    const before = scaled.map(([gate]) => gate[0]);
    try {
      for (const [gate, scale] of scaled) if (scale !== 1) gate[0] = Math.atanh(scale * Math.tanh(gate[0]));
      SWITCHES.late.set(live.model, after);
      // Of a token's numbers the first D are the final state's; then the two kept states alternate.
      const D = config.vision.hidden_size;
      return projector.forward(vision.forward(live.tiles).map((value, i) => {
        const c = i % (3 * D);
        return handedOn[c < D ? 0 : 1 + (c - D) % 2] ? value : 0;
      }));
    } finally {
      SWITCHES.late.set(live.model, false);
      scaled.forEach(([gate], i) => { gate[0] = before[i]; });
    }
  }

  function answers(parts) {  // to each question: the text, and the logits at its first token
    const image = encode(parts), { model, tokenizer } = live;
    return QUESTIONS.map(question => {
      const prompt = tokenizer.encodeChat([{ role: "user", content: [null, question] }]);
      const options = { stopIds: tokenizer.stopIds, maxNewTokens: 24 };
      const tokens = [...generate(model, prompt, [image], options)];
      return { text: tokenizer.decode(tokens.map(({ id }) => id)), logits: tokens[0].logits };
    });
  }

  async function ask() {
    const mine = ++asked;
    busy = true;
    figure.redraw();
    await painted();
    if (mine !== asked) return;  // another control was moved
    whole ??= answers(WHOLE);
    now = answers(chosen()).map((answer, q) => ({ ...answer, moved: answer.logits.reduce(
      (most, v, i) => Math.max(most, Math.abs(v - whole[q].logits[i])), 0) }));
    busy = false;
  }
  for (const { input } of [...kept, tile, late, gates])
    input.addEventListener("input", async () => {
      if (!live) return;
      await ask();
      figure.redraw();
    });

  const button = figure.button({ label: "Ask the model (loads 5 MB)", press: async () => {
    button.disabled = true;
    const loaded = await figure.model();
    const image = el("img", { src: mllama.packed.pictures.mixed,
      alt: "A purple 6, a blue 2, a green 9 and a black star" });
    await image.decode();
    live = { ...loaded, tiles: imageToTiles(pixelsOf(image), loaded.config.vision_config.image_size) };
    image.style.cssText = "width: 8rem; height: auto; flex: 0 0 auto";
    table.before(image);
    await ask();
    button.remove();
  } });

  // The way through the encoder; what is left out is dashed.
  figure.drawing({ width: 320, height: 185 }, svg => {
    const { kept: handedOn, gates: share, tile: told, late: after } = chosen(), y = 135;
    const box = (x, width, fill, label) => {
      svg.rect(x, y - 16, width, 32, { ink: "ink", fill, "stroke-width": 1, "fill-opacity": 0.35 });
      svg.text(x + width / 2, y + 5, label, { anchor: "middle", size: 12 });
    };
    svg.line(0, y, 320, y, { ink: "grey" });
    for (let i = 0; i < 4; i++) box(8 + 34 * i, 24, "grey", i);
    svg.text(72, y + 40, "4 local layers", { anchor: "middle", size: 12 });
    box(146, 30, null, "LN");
    const dashed = on => (on ? {} : { "stroke-dasharray": "2 3" });
    svg.line(188, y + 36, 188, y, { ink: told ? "purple" : "grey", ...dashed(told) });
    svg.text(188, y + 48, told ? "+ tile" : "no tile",
      { anchor: "middle", size: 12, fill: told ? "purple" : "grey" });
    box(204, 24, share ? "orange" : null, 0);
    box(234, 24, share ? "orange" : null, 1);
    svg.text(246, y + 32, `gates \u00d7 ${share.toFixed(1)}`, { anchor: "middle", size: 12 });
    [[2, 3, 78, "green"], [1, 1, 34, "blue"]].forEach(([part, layer, top, ink]) => {
      const x = 8 + 34 * layer + (after ? 29 : -5), on = handedOn[part];
      svg.path([[x, y], [x, top], [278, top]], { ink: on ? ink : "grey", width: 2, ...dashed(on) });
      svg.text(x + 6, top - 7, `${after ? "leaves" : "enters"} layer ${layer}`,
        { size: 12, fill: on ? ink : "grey" });
    });
    [[1, 34, "blue"], [2, 78, "green"], [0, y, "orange"]].forEach(([part, middle, ink]) => {
      const on = handedOn[part];
      svg.rect(278, middle - 16, 40, 32,
        { fill: on ? ink : "none", ink: on ? ink : "grey", "fill-opacity": 0.35, ...dashed(on) });
      svg.text(298, middle + 5, on ? "128" : "0", { anchor: "middle" });
    });
    svg.text(318, 12, "handed on", { anchor: "end", size: 12 });
  });

  const table = figure.panel(el("table", {}), () => {
    const most = Math.max(1, ...(now ?? []).map(({ moved }) => moved));
    const head = ["Question", "Whole model", "Now", "Logits moved by"].map(text => el("th", {}, text));
    const rows = QUESTIONS.map((question, q) => {
      const told = now && !busy, answer = told ? now[q].text || "(nothing)" : "\u2026";
      const same = !told || now[q].text === whole[q].text;
      const bar = el("div", {}), moved = el("td", {}, told ? now[q].moved.toFixed(1) : "\u2026", bar);
      const width = told ? 100 * now[q].moved / most : 0;
      bar.style.cssText = `height: 0.4rem; width: ${width}%; background: var(--purple)`;
      return el("tr", {}, el("td", {}, question), el("td", {}, whole ? whole[q].text : "\u2026"),
        el("td", {}, same ? answer : el("strong", {}, `\u2260 ${answer}`)), moved);
    });
    table.replaceChildren(el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
    for (const cell of table.querySelectorAll("th, td"))
      cell.style.cssText = "padding: 0.2rem 0.4rem; text-align: left; vertical-align: top; "
        + "overflow-wrap: anywhere";
  });
  table.style.cssText = "flex: 1 1 20rem; width: 0; min-width: min(100%, 18rem); "
    + "font-size: 0.9rem; margin: 0; table-layout: fixed";

  const texts = given => given.map(({ text }) => text);
  figure.values(() => (now && !busy
    ? { whole: texts(whole), now: texts(now), moved: now.map(({ moved }) => moved) } : null));

  figure.words(() => {
    const { kept: handedOn, gates: share, tile: told, late: after } = chosen();
    const away = ["the final state", "the state of layer 1", "the state of layer 3"]
      .filter((_, i) => !handedOn[i]);
    if (!told) away.push("the post-tile embedding");
    const last = away.pop(), rest = away.length ? `${away.join(", ")} and ` : "";
    const changes = [...(last ? [`without ${rest}${last}`] : []),
      ...(share === 1 ? [] : [`with the global gates at ${gates.value} %`]),
      ...(after ? ["with states kept late"] : [])];
    const numbers = 128 * handedOn.filter(Boolean).length;
    const parts = `The encoder ${changes.join(", ") || "is whole"}: ${numbers} of 384 numbers of a token `
      + "are handed on.";
    if (busy) return `${parts} Computing the answers \u2026`;
    if (!now) return `${parts} Press the button to ask the model.`;
    const different = now.filter(({ text }, q) => text !== whole[q].text).length;
    const moved = now.map(answer => answer.moved);
    return `${parts} ${different} of 4 answers change; the logits at the first token move by up to `
      + `${Math.min(...moved).toFixed(1)} to ${Math.max(...moved).toFixed(1)}, question by question.`;
  });
});
