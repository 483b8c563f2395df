"use strict";
// Chapter 13: a question and an answer become tokens and labels; what is learned lies one place before
// the token that it names, and few settings of the labels teach what was meant.
mllama.figure("learned_tokens", figure => {
  const { el } = mllama, SKIPPED = -100;
  const question = figure.typed({ label: "Question", value: "Which digit is red?" });
  const answer = figure.typed({ label: "Answer", value: "4" });
  const images = figure.slider({ label: "Images", min: 0, max: 2, value: 1 });
  const end = figure.toggle({ label: "Without end of turn" });
  const everything = figure.toggle({ label: "Learn the question too" });
  const unshifted = figure.toggle({ label: "Forget the shift" });
  const place = figure.slider({ label: "Place", min: 0, max: 17, value: 15 });

  let tokenizer = null;
  const fetched = async () => {
    await figure.packed();
    tokenizer = new mllama.Tokenizer(mllama.packed.tokenizer);
    fitted();
    place.value = sample().labels.findIndex(label => label !== SKIPPED);
  };
  const fitted = () => {
    if (!tokenizer) return;
    place.input.max = sample().tokens.length - 1;
    place.value = place.input.value;  // what the slider now allows
  };
  for (const control of [question, answer, images]) control.input.addEventListener("input", fitted);

  // { tokens, labels, first }: as adapters/data.py builds them, then as the toggles spoil them; the
  // answer begins at token `first`.
  function sample() {
    const user = { role: "user", content: [...Array(images.value).fill(null), question.value] };
    const eot = tokenizer.special["<|eot_id|>"];
    const tokens = tokenizer.encodeChat([user]), first = tokens.length;
    tokens.push(...tokenizer.encode(answer.value), eot);
    const learned = tokens.map((id, i) => {
      if (i === 0 || (i < first && !everything.value)) return SKIPPED;
      return i === tokens.length - 1 && end.value ? SKIPPED : id;
    });
    return { tokens, first, labels: unshifted.value ? learned : [...learned.slice(1), SKIPPED] };
  }

  const names = () => Object.fromEntries(
    Object.entries(tokenizer.special).map(([name, id]) => [id, name.slice(2, -2)]));
  const shown = id => {
    if (id === SKIPPED) return "–";
    if (id === tokenizer.imageId) return "image";
    return names()[id] ?? (tokenizer.decode([id]) || "�").replace(/\n/g, "↵").replace(/ /g, "␣");
  };
  const quoted = id => `“${shown(id)}”`;
  const chosen = tokens => Math.min(place.value, tokens.length - 1);

  const table = el("div", { style: "display:flex;flex-wrap:wrap;gap:4px;flex:1 1 100%" });
  table.addEventListener("click", event => {
    const card = event.target.closest("[data-place]");
    if (card) place.value = Number(card.dataset.place);
  });
  figure.panel(table, () => {
    if (!tokenizer) return;
    const { tokens, labels } = sample();
    table.replaceChildren(...tokens.map((id, i) => {
      const learned = labels[i] !== SKIPPED, ink = learned ? "var(--orange)" : "var(--grey)";
      const frame = i === chosen(tokens) ? "3px solid var(--blue)" : "1px solid var(--grey)";
      const card = el("div", { style: `border:${frame};border-radius:4px;min-width:1.6em;text-align:center;`
        + `font-size:13px;line-height:1.5;padding:${i === chosen(tokens) ? 0 : 2}px;cursor:pointer` },
      el("div", { style: "padding:0 4px" }, shown(id)),
      el("div", { style: `padding:0 4px;border-top:1px solid ${ink};color:${ink};`
        + `font-weight:${learned ? "bold" : "normal"}` }, shown(labels[i])));
      card.dataset.place = i;
      return card;
    }));
  });

  figure.values(() => tokenizer && sample());

  figure.words(() => {
    if (!tokenizer) return "The tokenizer is being loaded, with which a question and an answer become tokens.";
    for (const [what, typed] of [["question", question], ["answer", answer]])
      if (!typed.value.trim()) return `The ${what} is empty: such a line of the folder is refused.`;
      else if ((typed.value.match(/<\|\w+\|>/g) ?? []).some(name => name in tokenizer.special))
        return `A special token is spelled in the ${what}: there it is ordinary text, and such a line is refused.`;
    const { tokens, labels, first } = sample(), i = chosen(tokens);
    const learned = labels.filter(label => label !== SKIPPED).length;
    const own = tokens.slice(first).filter((_, j) => j < tokens.length - first - end.value).length;
    const part = `the answer${end.value ? "" : " and its end"}`;
    const said = [`${tokens.length} tokens above, their labels below: ${learned} ${learned === 1 ? "is" : "are"} `
      + `learned (orange), ${everything.value ? `${own} of them ${part}` : part}.`];
    said.push(labels[i] === SKIPPED ? `At place ${i} (blue) nothing is learned.`
      : `At place ${i} (blue) the last token read is ${quoted(tokens[i])}, and its label says `
        + `that ${quoted(labels[i])} follows.`);
    if (end.value) said.push("Nothing says that the answer is over: the model goes on.");
    if (everything.value)
      said.push(`Of what is learned, ${part} are ${Math.round(100 * own / learned)} %.`);
    if (labels.includes(tokenizer.imageId))
      said.push(`The image's token is a label, ${tokenizer.imageId}, one past the head's last row: `
        + "the loss fails.");
    if (unshifted.value) said.push("Each label is the token just read: what is learned is to repeat it.");
    return said.join(" ");
  });

  fetched().then(() => figure.redraw());
});
