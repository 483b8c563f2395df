"use strict";
// Chapter 17: what is kept for a text with images in the 11B, on either road.
mllama.figure("kept_tokens", figure => {
  const LAYERS = 40, CROSS = 8, SEEN = 1601, BYTES = 2 * 8 * 128 * 2;  // of a token in a layer, bf16
  const images = figure.slider({ label: "Images of four tiles", min: 0, max: 16, value: 1 });
  const text = figure.slider({ label: "Tokens of text", min: 0, max: 8000, step: 50, value: 200 });
  const each = figure.choice({ label: "Tokens a tile, in the text", options: ["1,601", "256", "64", "16"], value: "256" });

  const parts = () => {
    const tiles = 4 * images.value, tokens = Number(each.value.replace(",", ""));
    return {
      "cross-attention": [(LAYERS - CROSS) * text.value * BYTES, CROSS * tiles * SEEN * BYTES],
      "as tokens": [LAYERS * text.value * BYTES, LAYERS * tiles * tokens * BYTES],
    };
  };

  figure.drawing({ width: 520, height: 150 }, svg => {
    const found = parts(), most = Math.max(...Object.values(found).map(([a, b]) => a + b), 1);
    Object.entries(found).forEach(([name, [words, seen]], row) => {
      const y = 30 + 52 * row, x = n => 330 * n / most;
      svg.text(0, y + 19, name, { size: 13 });
      svg.rect(110, y, x(words), 28, { fill: "blue", "fill-opacity": 0.8 });
      svg.rect(110 + x(words), y, x(seen), 28, { fill: "orange", "fill-opacity": 0.8 });
      svg.text(116 + x(words + seen), y + 19, `${Math.round((words + seen) / 1e6).toLocaleString("en")} MB`, { size: 13 });
    });
    svg.text(110, 142, "text", { size: 12, fill: "blue" });
    svg.text(150, 142, "images", { size: 12, fill: "orange" });
  });

  figure.values(parts);

  figure.words(() => {
    const [looked, read] = Object.values(parts()).map(([a, b]) => a + b);
    if (!looked && !read) return "Nothing is kept yet.";
    const times = Math.max(looked, read) / Math.max(Math.min(looked, read), 1);
    if (times < 1.005) return "Both keep as much.";
    return `${read > looked ? "As tokens" : "With cross-attention"}, ${times.toFixed(times < 10 ? 2 : 0)} times as much is kept.`;
  });
});
