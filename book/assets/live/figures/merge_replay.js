"use strict";
// Chapter 1: a word is merged pair by pair, lowest rank first. Merging the leftmost known pair instead can
// end in other tokens: only the order of the ranks replays the training.
mllama.figure("merge_replay", figure => {
  const LEFT = 62, ROW = 26, MOST = 12;  // bytes of a word
  const RULES = { "lowest rank first": false, "leftmost known pair first": true };
  let ranks = null;  // of the small model's vocabulary

  const word = figure.typed({ label: "Word", value: " right" });
  word.input.maxLength = MOST;
  const shown = figure.slider({ label: "Merges", min: 0, max: MOST - 1, value: 1 });

  const bytesOf = text => String.fromCharCode(...new TextEncoder().encode(text).subarray(0, MOST));
  const readable = part => {
    const bytes = Uint8Array.from(part, c => c.charCodeAt(0));
    const text = new TextDecoder().decode(bytes).replaceAll(" ", "\u2423");
    return text.includes("\ufffd") || /\p{C}/u.test(text)
      ? Array.from(bytes, b => b.toString(16).padStart(2, "0")).join(" ") : text;
  };
  const pairs = parts => parts.slice(1).map((part, i) => ranks?.get(parts[i] + part) ?? Infinity);

  // The splits of the word, one a merge: { rank, parts, at }, at: which part the merge has made.
  function replay(leftmost) {
    const steps = [{ rank: null, parts: [...bytesOf(word.value)], at: -1 }];
    for (;;) {
      const { parts } = steps.at(-1), candidates = pairs(parts), lowest = Math.min(...candidates);
      if (lowest === Infinity) return steps;
      const at = candidates.findIndex(rank => (leftmost ? rank < Infinity : rank === lowest));
      const merged = [...parts.slice(0, at), parts[at] + parts[at + 1], ...parts.slice(at + 2)];
      steps.push({ rank: candidates[at], parts: merged, at });
    }
  }
  const both = () => Object.values(RULES).map(replay);
  const last = steps => Math.min(shown.value, steps.length - 1);
  const longest = () => Math.max(...both().map(steps => steps.length));

  for (const [title, leftmost] of Object.entries(RULES))
    figure.drawing({ width: 320, height: ROW * 8 }, svg => {
      const steps = replay(leftmost), until = last(steps);
      svg.svg.setAttribute("viewBox", `0 0 320 ${ROW * (longest() + 2)}`);
      svg.text(0, 15, title, { "font-weight": "bold" });
      const unit = (320 - LEFT) / Math.max(steps[0].parts.length, 6);
      steps.slice(0, until + 1).forEach(({ rank, parts, at }, n) => {
        const y = (n + 1) * ROW;
        svg.text(0, y + 17, n ? `rank ${rank}` : "bytes");
        let x = LEFT;
        parts.forEach((part, i) => {
          const width = part.length * unit, made = i === at;
          svg.rect(x + 1, y + 2, width - 2, ROW - 6, {
            ink: made ? "orange" : "grey", "stroke-width": made ? 2.5 : 1, rx: 3,
          });
          svg.text(x + width / 2, y + 17, readable(part), { anchor: "middle" });
          x += width;
        });
      });
      // Below the last row: the rank of every pair of neighbours; the next to be merged in bold.
      const { parts } = steps[until], next = steps[until + 1]?.at, y = (until + 2) * ROW + 14;
      svg.text(0, y, next === undefined ? "done" : "pairs", { fill: "grey" });
      let x = LEFT;
      pairs(parts).forEach((rank, i) => {
        x += parts[i].length * unit;
        svg.text(x, y, rank < Infinity ? rank : "\u2013", {
          size: 12, anchor: "middle", fill: i === next ? "orange" : "grey",
          "font-weight": i === next ? "bold" : "normal",
        });
      });
    });

  const fit = () => {  // as many merges as there are
    shown.input.max = Math.max(longest() - 1, 1);
    shown.value = shown.value;  // what stands beside it
  };
  word.input.addEventListener("input", fit);

  figure.values(() => ranks && both().map(steps => ({
    steps: steps.map(({ rank, parts }) => [rank, parts]), shown: last(steps),
    ids: steps.at(-1).parts.map(part => ranks.get(part)),
  })));

  figure.words(() => {
    if (!ranks) return "The small model's vocabulary is being loaded; the boxes are the bytes of the word.";
    const told = both().map((steps, i) => {
      const parts = steps.at(-1).parts, list = parts.map(readable).join(" | ");
      const count = `${parts.length} ${parts.length === 1 ? "token" : "tokens"}`;
      const rule = ["Lowest rank first", "Leftmost known pair first"][i];
      if (last(steps) === steps.length - 1) return `${rule} ends with ${count}: ${list}.`;
      const { rank, parts: after, at } = steps[last(steps) + 1];
      return `${rule} makes ${readable(after[at])}, rank ${rank}, next.`;
    });
    const [right, left] = both().map(steps => steps.at(-1).parts);
    const done = shown.value >= longest() - 1;
    if (done) told.push(right.join("|") === left.join("|") ? "The same tokens." : "Not the same tokens.");
    return told.join(" ");
  });

  (async () => {
    await figure.packed();
    ({ ranks } = new mllama.Tokenizer(mllama.packed.tokenizer));
    fit();
  })();
});
