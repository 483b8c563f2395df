"use strict";
// Chapter 16: which tokens a token knows of after some layers. Chunks do not slide, so that layers add nothing
// until one of them sees everything.
mllama.figure("chunk_reach", figure => {
  const TOKENS = 12, STEP = 21, LEFT = 62, HIGH = 44, NTH = ["st", "nd", "rd", "th"];
  const token = figure.slider({ label: "Token", min: 0, max: TOKENS - 1, value: 9 });
  const layers = figure.slider({ label: "Layers", min: 1, max: 4, value: 3 });
  const chunk = figure.slider({ label: "Chunk", min: 1, max: TOKENS, value: 4 });
  const every = figure.slider({
    label: "Without positions every", min: 0, max: 4, value: 4,
    format: n => (n ? `${n}${NTH[n - 1]} layer` : "never"),
  });

  const isFar = layer => every.value > 0 && (layer + 1) % every.value === 0;
  const sees = (layer, query, key) => key <= query
    && (isFar(layer) || Math.floor(key / chunk.value) === Math.floor(query / chunk.value));
  // Which states matter: those after the last layer first, what enters the first layer last.
  const reached = () => {
    const states = [new Set([token.value])];
    for (let layer = layers.value - 1; layer >= 0; layer--) {
      const before = new Set();
      for (const query of states[0])
        for (let key = 0; key <= query; key++) if (sees(layer, query, key)) before.add(key);
      states.unshift(before);
    }
    return states;
  };

  figure.drawing({ width: LEFT + STEP * TOKENS + 6, height: 4 * HIGH + 70 }, svg => {
    const states = reached(), x = i => LEFT + STEP * (i + 0.5), y = level => 4 * HIGH + 28 - HIGH * level;
    states.forEach((state, level) => {
      const name = level ? `layer ${level}` : "tokens";
      svg.text(0, y(level) + 5, name, { size: 13 });
      if (level) svg.text(0, y(level) + 19, isFar(level - 1) ? "everything" : "chunks", { size: 11, fill: "grey" });
      if (level) for (const query of state)
        for (const key of states[level - 1])
          if (sees(level - 1, query, key))
            svg.line(x(query), y(level) + 9, x(key), y(level - 1) - 9, { ink: isFar(level - 1) ? "orange" : "blue", width: 0.8 });
      for (let i = 0; i < TOKENS; i++)
        svg.circle(x(i), y(level), state.has(i) ? 7 : 3, { ink: "grey", fill: state.has(i) ? "blue" : null });
    });
    for (let i = 0; i < TOKENS; i++) svg.text(x(i), y(0) + 28, i, { size: 12, anchor: "middle" });
    for (let i = chunk.value; i < TOKENS; i += chunk.value)
      svg.line(LEFT + STEP * i, y(0) + 14, LEFT + STEP * i, y(states.length - 1) - 14, { ink: "grey", width: 1, "stroke-dasharray": "3 4" });
  });

  figure.values(() => reached().map(state => [...state].sort((a, b) => a - b)));

  figure.words(() => {
    const known = [...reached()[0]].length, begin = Math.floor(token.value / chunk.value) * chunk.value;
    const far = [...Array(layers.value).keys()].some(isFar);
    const start = `After ${layers.value} ${layers.value === 1 ? "layer" : "layers"}, token ${token.value} knows of ${known} of `
      + `the ${token.value + 1} tokens up to itself.`;
    if (!begin) return `${start} It stands in the first chunk, where nothing is hidden from it.`;
    return far ? `${start} One layer that sees everything is enough.`
      : `${start} What stands before token ${begin}, where its chunk begins, it can never know, with however many such layers.`;
  });
});
