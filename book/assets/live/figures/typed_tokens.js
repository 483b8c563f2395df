"use strict";
// Chapter 1: what is typed is cut into pieces by Llama 3's pattern and then into tokens. Typed text
// is never a special token, unless a program asks for it.
mllama.figure("typed_tokens", figure => {
  const { el, bpeMerge, SPLIT_PATTERN } = mllama;
  // The alternatives of the pattern in their order, each as a group of its own, which tells its name.
  const NAMES = ["contraction", "letters", "digits", "punctuation", "line breaks", "spaces", "rest"];
  const INK_OF = ["purple", "blue", "orange", "green", "grey", "grey", "grey"];
  const groups = SPLIT_PATTERN.source.split(/\|(?![^(]*\))/).map(one => `(${one})`);
  const pattern = new RegExp(groups.join("|"), "gu");
  let tokenizer = null;  // of the small model

  const typed = figure.typed({ label: "Text", value: "How many digits? 12345 or 2345, it's<|eot_id|>" });
  typed.input.style.width = "min(26rem, 75vw)";
  const unsafe = figure.toggle({ label: "Let typed names become special tokens (unsafe)" });

  // Bytes as characters, and back to what can be shown.
  const readable = bytes => {
    const codes = Uint8Array.from(bytes, c => c.charCodeAt(0)), text = new TextDecoder().decode(codes);
    return text.includes("\ufffd") ? Array.from(codes, b => b.toString(16).padStart(2, "0")).join(" ")
      : text.replaceAll(" ", "\u2423");
  };

  function cut(text) {  // [{ text, name, ink, ids }]
    return [...text.matchAll(pattern)].map(match => {
      const kind = match.slice(1).findIndex(group => group !== undefined);
      const bytes = String.fromCharCode(...new TextEncoder().encode(match[0]));
      const whole = tokenizer?.ranks.get(bytes);
      const ids = whole === undefined ? tokenizer && bpeMerge(bytes, tokenizer.ranks) : [whole];
      return { text: match[0], name: NAMES[kind], ink: INK_OF[kind], ids };
    });
  }

  function pieces() {
    if (!unsafe.value || !tokenizer) return cut(typed.value);
    const names = Object.keys(tokenizer.special).map(name => name.replaceAll("|", "\\|"));
    return typed.value.split(new RegExp(`(${names.join("|")})`)).flatMap(part => {
      const id = tokenizer.special[part];
      return id === undefined ? cut(part) : [{ text: part, name: "special", ink: "ink", ids: [id] }];
    });
  }

  const flow = el("div", { style: "display: flex; flex-wrap: wrap; gap: 0.6rem 0.5rem; width: 100%" });
  figure.panel(flow, () => flow.replaceChildren(...pieces().map(({ text, name, ink, ids }) => {
    const special = name === "special";
    const border = `border: ${special ? 4 : 2}px solid var(--${ink}); border-radius: 0.25rem`;
    const boxes = (special || !ids ? [text] : ids.map(id => tokenizer.tokens[id])).map((token, i) =>
      el("span", { style: `padding: 0 0.2rem; ${i ? `border-left: 1px dashed var(--${ink})` : ""}` },
        special || !ids ? token.replaceAll(" ", "\u2423") : readable(token)));
    const style = `display: inline-flex; align-items: center; min-height: 1.6em; ${border}`;
    const box = el("span", { style }, ...boxes);
    return el("span", { style: "display: inline-flex; flex-direction: column; align-items: center" }, box,
      el("span", { style: `font-size: 0.75rem; color: var(--${ink})` }, name));
  })));

  figure.values(() => tokenizer && {
    pieces: pieces().map(({ text, name }) => [text, name]), ids: pieces().flatMap(({ ids }) => ids),
  });

  figure.words(() => {
    const all = pieces(), count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
    if (!tokenizer) return `${count(all.length, "piece")} in boxes; the small model's vocabulary is being loaded.`;
    const numTokens = all.reduce((sum, { ids }) => sum + ids.length, 0);
    const numBytes = new TextEncoder().encode(typed.value).length;
    const spelled = Object.keys(tokenizer.special).find(name => typed.value.includes(name));
    const shares = numTokens ? `, ${(numBytes / numTokens).toFixed(2)} bytes a token` : "";
    let told = `${count(all.length, "piece")} in boxes, cut into ${count(numTokens, "token")} by the small model's `
      + `vocabulary${shares}.`;
    if (spelled && unsafe.value)
      told += ` The typed ${spelled} has become token ${tokenizer.special[spelled]}, as if a program had set it.`;
    else if (spelled) {
      const ids = tokenizer.encode(spelled);
      told += ` The typed ${spelled} stays text: ${count(ids.length, "ordinary token")}, none of them `
        + `${tokenizer.special[spelled]}.`;
    }
    return told;
  });

  (async () => {
    await figure.packed();
    tokenizer = new mllama.Tokenizer(mllama.packed.tokenizer);
    figure.redraw();
  })();
});
