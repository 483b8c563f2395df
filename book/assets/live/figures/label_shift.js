"use strict";
// Chapter 11: what one conversation teaches. At each place stands the token that follows; only places
// where it belongs to an answer count. With the model loaded, what each of them costs.
mllama.figure("label_shift", figure => {
  const { el, KVCache, imageToTiles, painted, pixelsOf } = mllama, NONE = -100;
  const MODES = ["of answers alone", "of every token", "of answers, not shifted", "of answers, no end of turn"];
  const question = figure.typed({ label: "Question", value: "Read the digits from left to right." });
  const answer = figure.typed({ label: "Answer", value: "3 1 9" });
  const mode = figure.choice({ label: "Labels", options: MODES });
  const second = figure.toggle({ label: "A second turn" });
  const place = figure.slider({ label: "Place", min: 0, max: 31, value: 23 });
  question.input.size = 30;
  answer.input.size = 10;
  const LATER = { question: "How many digits are there?", answer: "3" };

  let tokenizer = null, live = null, vision = null, busy = false, shown = null;
  const packed = figure.packed();
  const fit = () => {  // the slider ends with the text
    if (!tokenizer) return;
    place.input.max = encoded().tokens.length - 1;
    place.input.dispatchEvent(new Event("input"));
  };
  for (const control of [question, answer, second]) control.input.addEventListener("input", fit);
  packed.then(() => {
    tokenizer = new mllama.Tokenizer(mllama.packed.tokenizer);
    fit();
  });

  // The tokens of the turns and their labels, as encode_turns of the chapter makes them; then what
  // each mode makes of these. ends: places of the answers' ends.
  function encoded() {
    const turns = [{ question: question.value, answer: answer.value }, ...(second.value ? [LATER] : [])];
    const end = tokenizer.special["<|eot_id|>"], tokens = [tokenizer.special["<|begin_of_text|>"]], labels = [];
    turns.forEach((turn, i) => {
      tokens.push(...tokenizer.encodeHeader("user"), ...(i ? [] : [tokenizer.imageId]),
        ...tokenizer.encode(turn.question), end, ...tokenizer.encodeHeader("assistant"));
      while (labels.length < tokens.length - 1) labels.push(NONE);
      const own = [...tokenizer.encode(turn.answer), end];
      tokens.push(...own);
      labels.push(...own);
    });
    labels.push(NONE);
    const made = {
      [MODES[0]]: () => labels,
      // An image is no word that the model could say.
      [MODES[1]]: () => tokens.map((_, i) =>
        (i + 1 < tokens.length && tokens[i + 1] !== tokenizer.imageId ? tokens[i + 1] : NONE)),
      [MODES[2]]: () => [NONE, ...labels.slice(0, -1)],
      [MODES[3]]: () => labels.map(label => (label === end ? NONE : label)),
    };
    return { tokens, labels: made[mode.value]() };
  }

  // What each label costs: minus the logarithm of the probability that the model gives it.
  let known = { key: "" };
  function costs({ tokens, labels }) {
    if (!vision) return null;
    const key = tokens.join();
    if (known.key !== key) {
      const context = live.model.visionContext(tokens, [vision]);
      known = { key, logits: live.model.forward(tokens, new KVCache(), context, true) };
    }
    const width = known.logits.length / tokens.length;
    return labels.map((label, t) => {
      if (label === NONE) return null;
      const row = known.logits.subarray(t * width, (t + 1) * width);
      const most = row.reduce((a, b) => Math.max(a, b));
      return Math.log(row.reduce((sum, v) => sum + Math.exp(v - most), 0)) + most - row[label];
    });
  }

  function state() {
    if (!tokenizer) return null;
    const made = encoded(), cost = costs(made), learned = made.labels.filter(label => label !== NONE).length;
    const mean = cost && learned ? cost.reduce((sum, c) => sum + (c ?? 0), 0) / learned : null;
    return { ...made, cost, learned, mean, at: Math.min(place.value, made.tokens.length - 1) };
  }
  const load = figure.button({ label: "Load the model (5 MB): what does each label cost?", press: async () => {
    load.disabled = busy = true;
    figure.redraw();
    try {
      live = await figure.model();
      const image = el("img", { src: mllama.packed.pictures.digits });
      await image.decode();
      await painted();
      vision = live.model.encodeImage(imageToTiles(pixelsOf(image), live.model.config.vision.image_size));
      load.hidden = true;
    } finally {
      load.disabled = busy = false;
    }
  } });

  // A token as it fits into a small box, as in the chapter's picture.
  function textOf(id) {
    const special = Object.keys(tokenizer.special).find(name => tokenizer.special[name] === id);
    if (id === tokenizer.imageId) return "image";
    if (special) return special.replace(/<\|(.*?)(_of_text)?(_header)?(_id)?\|>/, "$1");
    const text = tokenizer.decode([id]);
    if (!text || text.includes("\ufffd"))  // a part of a letter: its bytes
      return [...tokenizer.tokens[id]].map(c => c.charCodeAt(0).toString(16)).join(" ");
    return text.replaceAll("\n", "\u21b5").replace(/^ +| +$/g, "") || "\u2423";
  }

  const picture = el("img", { alt: "The picture: a few handwritten digits in a row", hidden: true });
  picture.style.cssText = "width: 12rem; max-width: 100%; height: auto";
  figure.panel(picture, () => {
    if (!tokenizer || !picture.hidden) return;
    picture.src = mllama.packed.pictures.digits;
    picture.hidden = false;
  });
  const list = el("ol", {});
  list.style.cssText = "display: flex; flex-wrap: wrap; gap: 0.5rem 0.3rem; list-style: none; margin: 0; padding: 0; "
    + "flex: 1 1 20rem; font-size: 0.85rem";
  figure.panel(list, () => {
    shown = state();
    list.replaceChildren(...(shown ? shown.tokens : []).map((id, t) => {
      const label = shown.labels[t], learned = label !== NONE, cost = shown.cost?.[t] ?? null;
      const token = el("span", {}, textOf(id));
      const below = el("span", {}, learned ? `\u2193 ${textOf(label)}` : "\u2013");
      const item = el("li", { onclick: () => { place.value = t; } }, token, below);
      item.style.cssText = "display: flex; flex-direction: column; align-items: center; cursor: pointer; "
        + `outline: ${t === shown.at ? "2px solid var(--blue)" : "none"}; outline-offset: 1px`;
      token.style.cssText = "padding: 0.1rem 0.3rem; "
        + `border: ${learned ? "2px solid var(--orange)" : "1px solid var(--grey)"}`;
      below.style.cssText = `color: var(--${learned ? "orange" : "grey"})`;
      if (cost !== null) {
        const bar = el("span", {});
        bar.style.cssText = `width: 1rem; height: ${0.15 * Math.min(cost, 30)}rem; background: var(--orange)`;
        item.append(el("span", {}, cost.toFixed(2)), bar);
      }
      return item;
    }));
  });

  figure.values(state);

  figure.words(() => {
    if (!shown) return "The vocabulary is being loaded; then the tokens of a conversation stand here.";
    const { tokens, labels, cost, learned, mean, at } = shown, label = labels[at];
    const quoted = id => `\u201c${textOf(id)}\u201d`;
    const asked = label === NONE ? "counts for nothing" : mode.value === MODES[2]
      ? `has to say ${quoted(label)}, which it has just read` : `has to say ${quoted(label)}`;
    const price = !cost || label === NONE ? "" : ` That costs ${cost[at].toFixed(2)}.`;
    const all = mean === null ? "" : ` The loss is the mean of the ${learned}: ${mean.toFixed(3)}.`;
    const note = mode.value === MODES[3] ? " Nothing teaches the model to stop." : "";
    return `${learned} of ${tokens.length} places count. Place ${at}, ${quoted(tokens[at])}, ${asked}.${price}${all}${note}`
      + (busy ? " The model is being loaded, and looks at the picture." : "");
  });
});
