"use strict";
// Chapter 10: temperature, top-k, top-p and min-p reshape what the model offers; the reader picks the next
// token and the text goes on from there. Where the model is sure, settings change little.
mllama.figure("next_token", figure => {
  const { Session, argmax, el, painted, pixelsOf, imageToTiles, probabilities } = mllama;
  const WORDS = ["boat", "ship", "house", "cloud", "idea"], BY_HAND = [0.4, 0.3, 0.15, 0.1, 0.05].map(Math.log);
  const QUESTIONS = { "What is above the 9?": "mixed", "Read the digits from left to right.": "digits" };
  const ROWS = 8, LONGEST = 10;
  const share = p => (p < 0.0001 ? "<0.0001" : p.toFixed(p < 0.0095 ? 4 : 2));

  const temperature = figure.slider({ label: "Temperature", min: 0.1, max: 3, step: 0.1, value: 1,
    format: n => n.toFixed(1) });
  const topK = figure.slider({ label: "Top-k", min: 0, max: 10, value: 0, format: n => (n ? String(n) : "all") });
  const topP = figure.slider({ label: "Top-p", min: 0.05, max: 1, step: 0.05, value: 0.8,
    format: n => (n < 1 ? n.toFixed(2) : "all") });
  const minP = figure.slider({ label: "Min-p", min: 0, max: 1, step: 0.05, value: 0,
    format: n => (n ? n.toFixed(2) : "all") });
  const question = figure.choice({ label: "Question", options: Object.keys(QUESTIONS) });
  const rank = figure.slider({ label: "Token by rank", min: 1, max: ROWS, value: 1 });

  // What is written, and what may follow. Before the model is there: five words, the same every time.
  let live = null, session = null, logits = BY_HAND, written = [], busy = "", asked = 0;
  const names = id => (!live ? WORDS[id] : live.tokenizer.decode([id])
    || Object.keys(live.tokenizer.special).find(name => live.tokenizer.special[name] === id) || `token ${id}`);
  const quoted = id => `“${names(id)}”`;
  const text = () => (live ? live.tokenizer.decode(written.map(({ id }) => id))
    : written.map(({ id }) => WORDS[id]).join(" "));
  const ended = () => written.length >= LONGEST || (live && live.tokenizer.stopIds.has(written.at(-1)?.id));
  const before = () => probabilities(logits);
  const after = () => probabilities(logits, { temperature: temperature.value, topK: topK.value,
    topP: topP.value, minP: minP.value });
  const offered = () => Array.from(logits, (_, id) => id).sort((a, b) => logits[b] - logits[a] || a - b).slice(0, ROWS);
  const chosen = () => offered()[Math.min(rank.value, offered().length) - 1];

  async function working(said, work) {
    if (busy) return;
    busy = said;
    figure.redraw();
    try {
      await painted();
      await work();
    } finally {
      busy = "";
      figure.redraw();
    }
  }

  const ask = () => working("The model is loaded and reads the picture and the question …", async () => {
    do {  // again if the question was changed meanwhile
      asked = question.value;
      const loaded = live ?? await figure.model(), name = QUESTIONS[asked];
      picture.src = mllama.packed.pictures[name];
      picture.alt = name === "mixed" ? "A blue 2, a green 9, a purple 6 and a black star; nothing is above the 9."
        : "The digits 3, 1 and 9 in a row.";
      await picture.decode();
      const tiles = imageToTiles(pixelsOf(picture), loaded.model.config.vision.image_size);
      const images = [loaded.model.encodeImage(tiles)];
      const tokens = loaded.tokenizer.encodeChat([{ role: "user", content: [null, asked] }]);
      session = new Session(loaded.model);
      logits = session.extend(tokens, images);
      [live, written] = [loaded, []];
      picture.hidden = false;
      load.hidden = true;
    } while (asked !== question.value);
  });

  const write = id => {
    if (ended()) return;
    return working("The model computes …", () => {
      written.push({ id, before: before()[id] });
      rank.input.value = 1;
      rank.input.dispatchEvent(new Event("input"));
      if (session && !ended()) logits = session.step(id);
    });
  };
  const draw = () => {  // one token, from the distribution after the cuts
    const shares = after();
    let left = Math.random();
    const id = shares.findIndex(p => (left -= p) < 0);
    return write(id < 0 ? argmax(shares) : id);
  };
  const again = () => {
    if (live) return ask();
    written = [];
  };

  const load = figure.button({ label: "Ask the model (loads 5 MB)", press: ask });
  figure.button({ label: "Write this token", press: () => write(chosen()) });
  figure.button({ label: "Draw one", press: draw });
  figure.button({ label: "Start again", press: again });
  question.input.addEventListener("input", () => { if (live && !busy) ask(); });

  const picture = figure.panel(el("img", { hidden: true, alt: "", width: 168 }), () => {});
  picture.style.maxWidth = "42%";
  picture.style.height = "auto";

  const list = figure.drawing({ width: 320, height: 285 }, svg => {
    svg.text(0, 14, "What may come next: outline before, filled after", { size: 12 });
    if (ended()) return svg.text(0, 50, "The answer is finished.");
    const [first, last] = [before(), after()];
    offered().forEach((id, i) => {
      const y = 24 + 32 * i, picked = id === chosen();
      const label = quoted(id).length > 12 ? `${quoted(id).slice(0, 11)}…` : quoted(id);
      svg.text(14, y + 19, label);
      svg.rect(112, y + 3, 150 * last[id], 22, { fill: "blue", "fill-opacity": 0.6 });
      svg.rect(112, y + 3, Math.max(150 * first[id], 1), 22, { ink: "grey", "stroke-width": 1.5 });
      svg.text(266, y + 19, last[id] ? share(last[id]) : "cut");
      if (picked) svg.text(0, y + 19, "›", { size: 18, fill: "orange" });
      const row = svg.rect(0, y, 320, 28, { "data-id": id, "pointer-events": "all", rx: 4,
        ...(picked ? { ink: "orange" } : {}) });
      row.style.cursor = "pointer";
    });
  });
  list.svg.addEventListener("click", event => {
    if (event.target.dataset.id) write(Number(event.target.dataset.id));
  });

  figure.drawing({ width: 250, height: 220 }, svg => {
    svg.text(0, 14, "Written, and how likely it was (τ = 1)", { size: 12 });
    if (!written.length) svg.text(0, 42, "nothing yet", { fill: "grey" });
    written.forEach(({ id, before: likely }, i) => {
      const y = 24 + 19 * i;
      svg.text(0, y + 14, quoted(id).slice(0, 13), { size: 12 });
      svg.rect(100, y + 3, Math.max(90 * likely, 1), 13, { fill: "green", "fill-opacity": 0.6 });
      svg.text(198, y + 14, share(likely), { size: 12 });
    });
  });

  figure.values(() => ({ logits: Array.from(logits), after: Array.from(after()),
    written: written.map(({ id }) => id), shares: written.map(({ before: likely }) => likely), text: text() }));

  figure.words(() => {
    if (busy) return busy;
    const so = (live ? `“${asked}” ` : "Five words with the chapter’s probabilities, the same every time. ")
      + (written.length ? `Written: “${text()}”.` : "Nothing is written yet.");
    if (ended()) return `${so} The answer is finished.`;
    const shares = after(), stay = shares.filter(p => p > 0).length, best = offered()[0];
    const tokens = stay === shares.length ? `all ${stay} tokens stay` : `${stay} of ${shares.length} tokens stay`;
    return `${so} The likeliest next token is ${quoted(best)}, ${before()[best].toFixed(2)} before and `
      + `${shares[best].toFixed(2)} after; ${tokens}. Picked to be written: ${quoted(chosen())}.`;
  });
});
