"use strict";
// Chapter 8: which token sees which image. A token sees an image until the next one begins: then the
// first picture goes dark, for good.
mllama.figure("image_prompt", figure => {
  const { visibleRanges } = mllama;
  const PROMPTS = { "two images": "I a b I c d", "one image": "I a b c", "text before it": "a b I c d",
    "two in a row": "a I I b c", "three images": "a I b I I c", "text only": "a b c d", "my own": null };
  const RULES = ["the reference's", "Meta's code while it writes", "all stay visible"];
  const MOST = 12, MOST_IMAGES = 5;  // tokens of a prompt, and images that are drawn

  const example = figure.choice({ label: "Example", options: Object.keys(PROMPTS) });
  const typed = figure.typed({ label: "Prompt, I is an image", value: PROMPTS["two images"] });
  const written = figure.slider({ label: "Tokens of the answer", min: 0, max: 4, value: 2 });
  const rule = figure.choice({ label: "Rule", options: RULES });
  const reader = figure.slider({ label: "Token that looks", min: 1, max: 8, value: 8 });

  const prompt = () => typed.value.split(/\s+/).filter(Boolean).slice(0, MOST)
    .map(t => (t === "i" ? "I" : t.slice(0, 2)));
  const text = () => [...prompt(), ...Array.from({ length: written.value }, (_, i) => `+${i + 1}`)];

  // [start, end] of each image; an end of Infinity where there is none.
  function ranges() {
    const tokens = prompt(), found = visibleRanges(tokens, "I");
    if (rule.value === RULES[1] && found.length > 1)  // its last range ends with the prompt
      return found.map(([start, end]) => [start, Math.min(end, tokens.length)]);
    return rule.value === RULES[2] ? found.map(([start]) => [start, Infinity]) : found;
  }
  const sees = ([start, end], t) => start <= t && t < end;
  const looking = () => Math.min(reader.value, text().length) - 1;

  // The last token looks, unless the reader has chosen another.
  const toEnd = () => {
    const length = Math.max(1, text().length);
    Object.assign(reader.input, { max: length });
    reader.value = length;
  };
  example.input.addEventListener("input", () => {
    if (PROMPTS[example.value] !== null) typed.value = PROMPTS[example.value];
  });
  typed.input.addEventListener("input", () => {
    const known = Object.keys(PROMPTS).find(name => PROMPTS[name] === typed.value) ?? "my own";
    if (example.value !== known) example.input.value = known;
    toEnd();
  });
  written.input.addEventListener("input", toEnd);
  const change = tokens => {
    if (tokens.length && tokens.length <= MOST) typed.value = tokens.join(" ");
  };
  const add = token => change([...prompt(), token]);
  figure.button({ label: "Add an image", press: () => add("I") });
  figure.button({ label: "Add a word", press: () =>
    add("abcdefghkmnp"[prompt().filter(t => t !== "I").length % 12]) });
  figure.button({ label: "Take the last away", press: () => change(prompt().slice(0, -1)) });

  const asHigh = (svg, height) => {
    svg.height = height;
    svg.svg.setAttribute("viewBox", `0 0 ${svg.width} ${height}`);
  };
  const STEP = 16.5, LEFT = 54, ROW = 30, x = t => LEFT + STEP * t;
  const table = figure.drawing({ width: 320, height: 130 }, svg => {
    const tokens = text(), images = ranges(), length = prompt().length, t0 = looking();
    const bottom = 58 + ROW * Math.max(1, Math.min(MOST_IMAGES, images.length));
    let image = 0;
    asHigh(svg, bottom + 22);
    if (tokens.length) svg.rect(x(t0) - 1, 26, STEP, bottom - 28, { ink: "orange", "stroke-width": 2 });
    tokens.forEach((token, t) => {
      const middle = x(t) + STEP / 2 - 1;
      if (token === "I" && t < length) {
        svg.rect(x(t), 29, STEP - 2, 22, { fill: "blue", rx: 3, "data-drag": t });
        svg.text(middle, 45, ++image, { anchor: "middle", size: 12, "font-weight": "bold",
          "data-drag": t, style: "fill: var(--pst-color-background, #fff)" });
      } else svg.text(middle, 45, token, { anchor: "middle", size: 12, fill: t < length ? "ink" : "purple" });
      images.slice(0, MOST_IMAGES).forEach((range, m) => {
        const seen = sees(range, t), y = 58 + ROW * m;
        svg.rect(x(t), y, STEP - 2, ROW - 6,
          { fill: seen ? "blue" : "none", ink: seen ? "blue" : "grey", "stroke-width": 0.7 });
      });
    });
    images.slice(0, MOST_IMAGES).forEach((_, m) => svg.text(0, 74 + ROW * m, `image ${m + 1}`));
    if (!images.length) svg.text(LEFT, 80, "no image: the layers are skipped");
    svg.text(0, 16, "Filled: this token sees the image", { size: 12 });
    if (written.value) {
      svg.line(x(length) - 1.5, 24, x(length) - 1.5, bottom, { ink: "purple", "stroke-dasharray": "4 3" });
      svg.text(x(length), bottom + 16, "answer", { size: 12, fill: "purple" });
    }
  });

  // An image token that is dragged takes the place of the one under the pointer.
  let held = null;
  table.svg.addEventListener("pointerdown", () => { held = null; });
  table.onDrag((from, px) => {
    held ??= Number(from);
    const tokens = prompt(), to = Math.max(0, Math.min(tokens.length - 1, Math.floor((px - LEFT) / STEP)));
    if (to === held) return;
    tokens.splice(to, 0, ...tokens.splice(held, 1));
    held = to;
    typed.value = tokens.join(" ");
  });

  const polygon = (svg, fill, ...points) => svg.add("polygon", { points: points.join(" "), fill });
  const SHAPES = [
    (svg, cx, cy, ink) => svg.circle(cx, cy, 17, { fill: ink }),
    (svg, cx, cy, ink) => svg.rect(cx - 16, cy - 16, 32, 32, { fill: ink }),
    (svg, cx, cy, ink) => polygon(svg, ink, [cx, cy - 18], [cx + 19, cy + 15], [cx - 19, cy + 15]),
    (svg, cx, cy, ink) => polygon(svg, ink, [cx, cy - 20], [cx + 20, cy], [cx, cy + 20], [cx - 20, cy]),
    (svg, cx, cy, ink) => svg.circle(cx, cy, 12, { ink, "stroke-width": 9 }),
  ];
  figure.drawing({ width: 320, height: 130 }, svg => {
    const images = ranges().slice(0, MOST_IMAGES), t = looking(), token = text()[t];
    asHigh(svg, images.length > 3 ? 225 : 130);
    if (token !== undefined)
      svg.text(0, 16, `What token ${t + 1}, \u201c${token}\u201d, can look at:`, { size: 12 });
    images.forEach((range, m) => {
      const seen = sees(range, t), left = 106 * (m % 3), top = 28 + 96 * Math.floor(m / 3);
      svg.rect(left, top, 96, 66, { ink: "ink", rx: 4, style: seen ? "" : "fill: #333" });
      if (!seen) svg.line(left, top + 66, left + 96, top, { ink: "grey" });
      else SHAPES[m](svg, left + 48, top + 33, ["orange", "green", "purple", "blue", "orange"][m]);
      const state = seen ? "seen" : t < range[0] ? "not yet" : "dark";
      svg.text(left + 48, top + 84, `${m + 1}: ${state}`, { anchor: "middle", size: 12 });
    });
    if (!images.length) svg.text(0, 60, "no image in this text");
  });

  figure.values(() => ({ tokens: text(),
    ranges: ranges().map(([start, end]) => [start, end === Infinity ? null : end]),
    matrix: text().map((_, t) => ranges().map(range => sees(range, t))), looking: looking() }));

  figure.words(() => {
    const tokens = text(), images = ranges(), t = looking();
    if (!tokens.length) return "The prompt is empty: write letters and I, with spaces between them.";
    if (!images.length)
      return `A text of ${tokens.length} tokens without an image: every cross-attention layer is skipped.`;
    const listed = numbers => `image${numbers.length > 1 ? "s" : ""} ${numbers.join(" and ")}`;
    const which = wanted => images.flatMap((range, m) => (wanted(range) ? [m + 1] : []));
    const seen = which(range => sees(range, t)), dark = which(([, end]) => end <= t);
    const blind = tokens.filter((_, n) => !images.some(range => sees(range, n))).length;
    const gone = dark.map(m => `Image ${m} has been dark since token ${images[m - 1][1] + 1}.`).join(" ");
    const none = blind ? `${blind} of ${tokens.length} tokens see${blind === 1 ? "s" : ""} no image: for `
      + `${blind === 1 ? "it" : "them"} both branches are 0.` : "Every token sees an image.";
    return `Token ${t + 1} of ${tokens.length}, \u201c${tokens[t]}\u201d, sees `
      + `${seen.length ? listed(seen) : "no image"}. ${gone ? `${gone} ` : ""}${none}`;
  });
});
