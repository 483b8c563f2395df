"use strict";
// Chapter 4: the depth at which an answer can be read is not the layer that it needs. Layers of the
// trained model are left out one by one, and what remains is read after each of the others.
mllama.figure("layers_left_out", figure => {
  const LAYERS = 7, IMAGE = [1, 3, 5], MOST = 12;
  const QUESTIONS = [
    "What is in the picture?", "Read the digits from left to right.", "What colour is the 9?", "Is there a 7?",
  ];
  const question = figure.choice({ label: "Question", options: QUESTIONS });
  const boxes = Array.from({ length: LAYERS }, (_, i) =>
    figure.toggle({ label: `Layer ${i}${IMAGE.includes(i) ? ", image" : ""}`, value: true }));
  const out = () => boxes.flatMap((box, i) => (box.value ? [] : [i]));

  let live = null, image = null, vision = null;
  let saying = "the model is not loaded yet. Layers 1, 3 and 5 look at the picture.";
  const results = new Map();  // by question and layers left out

  const start = figure.button({ label: "Run the model (loads 5 MB)", press: async () => {
    start.disabled = true;
    const say = async text => {
      saying = text;
      figure.redraw();
      await mllama.painted();
    };
    try {
      await say("the model is being loaded.");
      const loaded = await figure.model();
      image = new Image();
      image.src = mllama.packed.pictures.digits;
      await image.decode();
      await say("the model looks at the picture.");
      const { model } = loaded, size = model.config.vision.image_size;
      vision = model.encodeImage(mllama.toTiles(mllama.pixelsOf(image), size, false));
      live = loaded;
      start.remove();
    } catch (error) {
      start.disabled = false;
      saying = `the model cannot be run: ${error.message}`;
      figure.redraw();
      throw error;
    }
  } });

  // Do something with the model while layers are left out; told(i, hidden) gets the stream after
  // the embedding, i = 0, and after layer i - 1. Whatever stood in the layers' place comes back.
  function without(left, told, run) {
    const { layers } = live.model.language_model;
    const before = layers.map(layer => Object.getOwnPropertyDescriptor(layer, "forward"));
    layers.forEach((layer, i) => {
      const own = layer.forward;
      layer.forward = (hidden, step) => {
        if (i === 0) told(0, hidden);
        const after = left.includes(i) ? hidden : own.call(layer, hidden, step);
        told(i + 1, after);
        return after;
      };
    });
    try {
      return run();
    } finally {
      layers.forEach((layer, i) => {
        delete layer.forward;
        if (before[i]) Object.defineProperty(layer, "forward", before[i]);
      });
    }
  }

  function prompt() {
    return live.tokenizer.encodeChat([{ role: "user", content: [null, question.value] }]);
  }

  // What the model writes without some layers: ids, the end of the turn among them.
  function answer(left) {
    const options = { stopIds: live.tokenizer.stopIds, maxNewTokens: MOST };
    return without(left, () => {}, () =>
      Array.from(mllama.generate(live.model, prompt(), [vision], options), ({ id }) => id));
  }

  const text = ids => live.tokenizer.decode(ids.filter(id => !live.tokenizer.stopIds.has(id)));

  // The whole model's answer and, by depth, the probability of each of its tokens, read off the
  // stream by the final norm and the head; what the model answers now.
  function state(left = out()) {
    if (!live) return null;
    const key = `${question.value} ${left}`;
    if (!results.has(key)) {
      const now = answer(left), usual = left.length ? state([]).usual : now, depths = [];
      const tokens = [...prompt(), ...usual], first = prompt().length - 1;
      const { model } = live, { norm, lm_head: head, config } = model.language_model;
      const read = (i, hidden) => {
        const size = config.hidden_size;
        depths[i] = usual.map((id, n) => {
          const from = (first + n) * size, row = hidden.subarray(from, from + size);
          return mllama.probabilities(head.forward(norm.forward(row)))[id];
        });
      };
      without(left, read, () =>
        model.forward(tokens, new mllama.KVCache(), model.visionContext(tokens, [vision])));
      results.set(key, { left, usual, now, depths });
    }
    return results.get(key);
  }

  const mean = values => values.reduce((a, b) => a + b, 0) / values.length;
  const short = words => (words.length > 34 ? `${words.slice(0, 33)}\u2026` : words || "(nothing)");

  figure.drawing({ width: 300, height: 190 }, svg => {
    if (image) svg.add("image", { href: image.src, x: 0, y: 4, width: 280, height: 107 });
    else svg.rect(0, 4, 280, 107, { ink: "grey", "stroke-dasharray": "4 4" });
    if (!image) svg.text(140, 62, "a picture of three digits", { anchor: "middle" });
    const now = state();
    if (!now) return;
    svg.text(0, 132, `all layers: ${short(text(now.usual))}`);
    const same = text(now.usual) === text(now.now);
    if (!now.left.length) return;
    const fill = same ? "green" : "orange";
    svg.text(0, 154, `now: ${short(text(now.now))}`, { fill });
    svg.text(0, 176, same ? "the same answer" : "another answer", { fill });
  });

  const stack = figure.drawing({ width: 320, height: 310 }, svg => {
    const now = state(), x = i => 64 + 32 * i, left = out();
    svg.text(0, 14, "read after");
    svg.text(x(0) + 15, 32, "emb.", { anchor: "middle", size: 12 });
    for (let i = 0; i < LAYERS; i++) {
      const there = !left.includes(i), image = IMAGE.includes(i), at = x(i + 1);
      const ink = image ? "orange" : "blue";
      svg.rect(at + 1, 17, 29, 22, { ink, fill: there ? ink : null, "fill-opacity": 0.25,
        ...(there ? {} : { "stroke-dasharray": "3 3" }) });
      svg.text(at + 15, 33, there ? i : "out", { anchor: "middle" });
    }
    svg.text(0, 33, "layer");
    const piece = id =>
      (live.tokenizer.stopIds.has(id) ? "end" : live.tokenizer.decode([id]).replace(/^ $/, "space"));
    const pieces = now ? now.usual.map(piece) : Array(MOST).fill("?");
    pieces.forEach((piece, n) => {
      const y = 46 + 20 * n;
      svg.text(x(0) - 6, y + 14, piece, { anchor: "end" });
      for (let i = 0; i <= LAYERS; i++) {
        if (left.includes(i - 1)) continue;
        svg.rect(x(i) + 1, y, 30, 18, { ink: "grey", "stroke-width": 0.5 });
        if (!now) continue;
        const p = now.depths[i][n];
        svg.rect(x(i) + 1, y, 30, 18, { fill: "green", "fill-opacity": 0.5 * p });
        svg.text(x(i) + 16, y + 13, Math.round(100 * p), { anchor: "middle", size: 12 });
      }
    });
    svg.text(0, 54 + 20 * pieces.length + 10, "% for each token of the whole model\u2019s answer", { size: 12 });
    for (let i = 0; i < LAYERS; i++) svg.rect(x(i + 1), 16, 32, 34 + 20 * pieces.length,
      { style: "pointer-events: all; cursor: pointer", "data-layer": i });
  });
  stack.svg.addEventListener("click", event => {
    const column = event.target.closest("[data-layer]");
    if (column) boxes[column.dataset.layer].value = !boxes[column.dataset.layer].value;
  });

  figure.values(() => {
    const now = state();
    return now && { usual: text(now.usual), now: text(now.now), depths: now.depths };
  });

  const listed = names => names.join(", ").replace(/, (\d+)$/, " and $1");

  figure.words(() => {
    const left = out(), now = state();
    const which = !left.length ? "With all seven layers"
      : `Without layer${left.length > 1 ? "s" : ""} ${listed(left)}`;
    if (!now) return `${which}: ${saying}`;
    const usual = text(now.usual), same = usual === text(now.now);
    const beside = same ? (left.length ? ", as with all layers" : "") : ` and not \u201c${usual}\u201d`;
    const read = now.depths.map((row, i) => `${i ? `layer ${i - 1}:` : "embedding"} ${mean(row).toFixed(2)}`)
      .filter((_, i) => !left.includes(i - 1));
    return `${which} the model says \u201c${text(now.now)}\u201d${beside}. The mean probability of the tokens `
      + `of the whole model\u2019s answer, read at every depth: ${read.join(", ")}.`;
  });
});
