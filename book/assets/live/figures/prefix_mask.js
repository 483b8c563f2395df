"use strict";
// Chapter 17: which token sees which, where an image stands in the text.
mllama.figure("prefix_mask", figure => {
  const CELL = 20, LEFT = 74, TOP = 30;
  const image = figure.slider({ label: "Tokens of the image", min: 1, max: 6, value: 4 });
  const question = figure.slider({ label: "Tokens of the question", min: 1, max: 4, value: 3 });
  const answer = figure.slider({ label: "Tokens of the answer", min: 1, max: 4, value: 2 });
  const way = figure.choice({ label: "The prompt is read", options: ["from left to right", "in both directions"] });

  const length = () => image.value + question.value + answer.value;
  const prefix = () => (way.value === "in both directions" ? image.value + question.value : 0);
  const sees = (query, key) => key <= query || (query < prefix() && key < prefix());
  const kindOf = i => (i < image.value ? "image" : i < image.value + question.value ? "question" : "answer");
  const INKS = { image: "orange", question: "blue", answer: "green" };
  const range = n => [...Array(n).keys()];
  const mask = () => range(length()).map(q => range(length()).map(k => sees(q, k)));

  figure.drawing({ width: LEFT + 14 * CELL + 6, height: TOP + 14 * CELL + 10 }, svg => {
    svg.text(LEFT, 14, "columns: what is seen", { size: 12, fill: "grey" });
    mask().forEach((row, q) => {
      svg.text(LEFT - 8, TOP + CELL * (q + 0.7), `${kindOf(q)} ${q}`, { size: 11, anchor: "end", fill: INKS[kindOf(q)] });
      row.forEach((seen, k) => svg.rect(LEFT + CELL * k + 1, TOP + CELL * q + 1, CELL - 2, CELL - 2, seen
        ? { fill: INKS[kindOf(k)], "fill-opacity": k > q ? 1 : 0.65 } : { ink: "grey", "stroke-opacity": 0.4 }));
    });
  });

  figure.values(mask);

  figure.words(() => {
    const more = mask().flatMap((row, q) => row.filter((seen, k) => seen && k > q)).length;
    const first = kindOf(0) === "image" ? row => row.filter((seen, k) => seen && kindOf(k) === "question").length : null;
    const hears = first(mask()[0]);
    if (!prefix()) return "No token sees what stands after it: the image's tokens know nothing of the question, and the "
      + "first of them nothing of the image's rest.";
    return `In ${more} places a token sees what stands after it. The image's first token sees ${hears} `
      + `${hears === 1 ? "token" : "tokens"} of the question; no token of the prompt sees the answer.`;
  });
});
