"use strict";
// Chapter 1: a vocabulary is learned from one text, merge by merge. The text it was learned from
// gets shorter and shorter; another text soon gains nothing: the rest is learned by heart.
mllama.figure("learned_merges", figure => {
  const { bpeMerge, el } = mllama;
  const LEARNED = "The museum has a room of boats. The oldest boat in the room is a rowing boat with a "
    + "broken oar, and the youngest boat is a ferry that took visitors over the bay until the bridge was "
    + "opened. Beside every boat there is a board, and on the board there is the name of the boat, the "
    + "name of the owner and the year in which the boat was built. Visitors read the boards before they "
    + "look at the boats. The guide of the museum would like them to look first and to read later, so she "
    + "has turned the boards around. Now the visitors look at the boats, and when they have a question "
    + "they turn a board and read the answer. The guide counts the questions. On a quiet day there are "
    + "forty questions, and on a day with rain, when the museum is full, there are a hundred. Most of the "
    + "questions are about the broken oar.";
  const OTHERS = {
    "another page about the museum": "When the bridge was opened, the owner of the ferry gave her to the "
      + "museum. Her bell hangs beside the door, and children ring it on their way to the other rooms.",
    "a recipe": "Peel two onions, cut them fine and fry them gently in butter. Add flour, then milk, a "
      + "little at a time, and stir quickly, so that nothing clots. Season with nutmeg, salt and pepper.",
    "a German page": "Das Museum hat einen Saal voller Boote. Neben jedem Boot steht eine Tafel, und wer "
      + "eine Frage hat, dreht die Tafel um und liest die Antwort.",
  };

  const wordsOf = text => text.match(/ ?\S+|\s+/gu).map(word =>
    String.fromCharCode(...new TextEncoder().encode(word)));
  const readable = token => token.replaceAll(" ", "\u2423");  // both texts are ASCII

  // The chapter's train_bpe: a Map from a token to its rank, and how often each new pair was seen.
  function trainBpe(words, numMerges) {
    const ranks = new Map(Array.from({ length: 256 }, (_, i) => [String.fromCharCode(i), i])), seen = [];
    const counts = new Map();
    for (const word of words) counts.set(word, (counts.get(word) ?? 0) + 1);
    const parts = new Map([...counts.keys()].map(word => [word, [...word]]));
    for (let n = 0; n < numMerges; n++) {
      const pairs = new Map();  // the length says where a ends in the key
      for (const [word, count] of counts) parts.get(word).slice(1).forEach((b, i) => {
        const a = parts.get(word)[i], key = `${a.length}:${a}${b}`;
        const pair = pairs.get(key) ?? { a, b, count: 0 };
        pair.count += count;
        pairs.set(key, pair);
      });
      const before = (p, q) => q.count - p.count || (p.a < q.a ? -1 : p.a > q.a ? 1 : p.b < q.b ? -1 : 1);
      const [best] = [...pairs.values()].sort(before);
      if (!best || best.count < 2) break;
      const merged = best.a + best.b;
      if (!ranks.has(merged)) {
        ranks.set(merged, ranks.size);
        seen.push(best.count);
      }
      for (const symbols of parts.values()) for (let i = 0; i + 1 < symbols.length; i++)
        if (symbols[i] === best.a && symbols[i + 1] === best.b) symbols.splice(i, 2, merged);
    }
    return { ranks, seen };
  }

  const { ranks, seen } = trainBpe(wordsOf(LEARNED), 500), newest = [...ranks.keys()].slice(256);
  const tables = [...newest.keys(), newest.length].map(n => new Map([...ranks].slice(0, 256 + n)));
  const tokensOf = (text, n) => wordsOf(text).flatMap(word => bpeMerge(word, tables[n])).map(id =>
    (id < 256 ? String.fromCharCode(id) : newest[id - 256]));
  const curveOf = text => {
    const counts = new Map();  // a word is merged once
    for (const word of wordsOf(text)) counts.set(word, (counts.get(word) ?? 0) + 1);
    const numBytes = new TextEncoder().encode(text).length;
    return tables.map(table => {
      let numTokens = 0;
      for (const [word, count] of counts) numTokens += count * bpeMerge(word, table).length;
      return numBytes / numTokens;
    });
  };
  const learnedCurve = curveOf(LEARNED);
  const curves = Object.fromEntries(Object.entries(OTHERS).map(([name, text]) => [name, curveOf(text)]));

  const merges = figure.slider({ label: "Merges", min: 0, max: newest.length, value: 40 });
  const other = figure.choice({ label: "Compare with", options: Object.keys(OTHERS) });

  figure.drawing({ width: 320, height: 230 }, svg => {
    const most = Math.ceil(learnedCurve.at(-1)), place = (bytes, n) =>
      [34 + 270 * n / newest.length, 196 - 176 * (bytes - 1) / (most - 1)];
    for (let y = 1; y <= most; y++) {
      svg.line(...place(y, 0), ...place(y, newest.length), { ink: "grey", width: 0.5 });
      svg.text(26, place(y, 0)[1] + 4, y, { anchor: "end", size: 12 });
    }
    for (let n = 0; n <= newest.length; n += 50)
      svg.text(place(1, n)[0], 212, n, { anchor: "middle", size: 12 });
    svg.text(34, 12, "bytes a token", { size: 12 });
    svg.text(304, 228, "merges", { size: 12, anchor: "end" });
    svg.line(...place(1, merges.value), ...place(most, merges.value), { ink: "grey", "data-drag": "merges" });
    const labels = [[learnedCurve, "blue", "learned from", -12], [curves[other.value], "orange", "not seen", 20]];
    for (const [curve, ink, label, above] of labels) {
      svg.path(curve.map(place), { ink });
      svg.circle(...place(curve[merges.value], merges.value), 6, { fill: ink, "data-drag": "merges" });
      const n = Math.round(0.8 * newest.length), [x, y] = place(curve[n], n);
      svg.text(x, y + above, label, { fill: ink, anchor: "end" });
    }
  }).onDrag((_, x) => {
    merges.value = Math.round(Math.min(Math.max((x - 34) / 270, 0), 1) * newest.length);
  });

  const BOX = "display: inline-block; line-height: 1.3; margin-right: 1px; padding: 0 1px; border-radius: 0.2rem";
  const texts = el("div", { style: "flex: 1 1 18rem; min-width: 0" });
  const inTokens = (text, ink, title) => el("p", { style: "margin: 0 0 0.5rem; line-height: 1.8" },
    el("b", { style: `color: var(--${ink})` }, `${title}: `), ...tokensOf(text, merges.value).map(token => {
      const isNewest = token === newest[merges.value - 1];
      const edge = isNewest ? `2px solid var(--${ink}); font-weight: bold` : "1px solid var(--grey)";
      return el("span", { style: `${BOX}; border: ${edge}` }, readable(token));
    }));
  figure.panel(texts, () => texts.replaceChildren(
    inTokens(LEARNED.slice(0, LEARNED.indexOf(", and the youngest")), "blue", "Learned from"),
    inTokens(OTHERS[other.value], "orange", `Not seen, ${other.value}`)));

  figure.values(() => ({
    learned: LEARNED, other: OTHERS[other.value], merges: newest.slice(0, merges.value),
    bytesPerToken: [learnedCurve[merges.value], curves[other.value][merges.value]],
    seen: seen[merges.value - 1] ?? null, most: newest.length,
  }));

  figure.words(() => {
    const n = merges.value, a = learnedCurve[n], b = curves[other.value][n];
    const latest = n
      ? `The newest of ${n} merges made ${readable(newest[n - 1])}, a pair seen ${seen[n - 1]} times.`
      : "No merge yet: every byte is a token.";
    return `${latest} The text learned from has ${a.toFixed(2)} bytes a token, ${other.value} ${b.toFixed(2)}: `
      + `a gap of ${(a - b).toFixed(2)}.`;
  });
});
