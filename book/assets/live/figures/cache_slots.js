"use strict";
// Chapter 3: the cache while an answer is written. Fewer key/value heads take fewer bytes and not one
// score less; without a cache all keys are computed again for every token.
mllama.figure("cache_slots", figure => {
  // One layer of the 11B is drawn; the bytes are those of its 32 self-attention layers in bf16.
  const H = 32, E = 128, LAYERS = 32, BYTES = 2, SLOTS = 16, PROMPT = 5, CONTEXT = 131072;

  const steps = figure.slider({ label: "Steps after the prompt", min: 0, max: SLOTS - PROMPT, value: 3 });
  const heads = figure.slider({
    label: "Key/value heads G", min: 0, max: Math.log2(H), value: 3, format: v => String(2 ** v),
  });
  const kept = figure.toggle({ label: "Keep keys and values", value: true });

  const LOOKS = {
    "computed now": { fill: "orange", ink: "ink", "stroke-width": 1.5 },
    kept: { fill: "green", ink: "ink", "stroke-width": 0.4 },
    free: { ink: "grey", "stroke-width": 0.4 },
  };

  const bytesOf = (slots, G) => 2 * LAYERS * G * slots * E * BYTES;  // a batch of one
  const read = () => {
    const G = 2 ** heads.value, used = PROMPT + steps.value;
    // Tokens whose keys and values a step computes: the prompt first, then one step a token.
    const tokens = Array.from({ length: steps.value + 1 }, (_, n) =>
      (kept.value && n ? 1 : PROMPT + n));
    return {
      G, used, now: tokens.at(-1), computed: tokens.reduce((a, b) => a + b, 0),
      bytes: kept.value ? bytesOf(SLOTS, G) : 0, bytesUsed: kept.value ? bytesOf(used, G) : 0,
      full: bytesOf(CONTEXT, G), scores: LAYERS * H * used,
    };
  };

  figure.drawing({ width: 320, height: 330 }, svg => {
    const { G, used, now } = read(), top = 20, pitch = 8.4, left = 84, cell = (320 - left) / SLOTS;
    svg.text(0, 11, "query heads", { fill: "blue", size: 12 });
    svg.text(left, 11, `slots of ${G} key/value ${G === 1 ? "head" : "heads"}`, { size: 12 });
    for (let h = 0; h < H; h++) {
      const g = Math.floor(h * G / H), group = H / G, middle = top + pitch * (g * group + group / 2);
      const y = top + pitch * (h + 0.5);
      svg.line(8, y, left - 4, middle, { ink: "blue", width: 0.7 });
      svg.circle(8, y, 3.2, { fill: "blue" });
      if (h % group) continue;
      for (let s = 0; s < SLOTS; s++) {
        const state = s >= used ? "free" : s >= used - now ? "computed now" : "kept";
        svg.rect(left + s * cell + 1, middle - 3.4, cell - 2, 6.8, LOOKS[state]);
      }
    }
    for (let s = 0; s < SLOTS; s += 5) svg.text(left + (s + 0.5) * cell, 304, s, { anchor: "middle", size: 12 });
    Object.entries(LOOKS).forEach(([state, look], i) => {
      const x = [0, 126, 200][i];
      svg.rect(x + 1, 316, 14, 8, look);
      svg.text(x + 20, 324, state, { size: 12 });
    });
  });

  const MIB = 2 ** 20, GIB = 2 ** 30;
  const size = bytes => (bytes >= GIB ? `${bytes / GIB} GiB`
    : bytes >= MIB ? `${(bytes / MIB).toFixed(2)} MiB` : `${bytes / 1024} KiB`);
  figure.drawing({ width: 320, height: 330 }, svg => {
    const { G } = read();
    svg.text(0, 11, `one row of ${CONTEXT.toLocaleString("en")} tokens, GiB`, { size: 12 });
    const most = bytesOf(CONTEXT, H), weights = 10.6e9 * BYTES;
    for (let n = 0; n <= Math.log2(H); n++) {
      const y = 24 + 30 * n, own = kept.value && 2 ** n === G;
      const bytes = bytesOf(CONTEXT, 2 ** n), width = 190 * bytes / most;
      svg.text(0, y + 16, `G = ${2 ** n}`, { size: 12, "font-weight": own ? "bold" : "normal" });
      svg.rect(52, y, width, 22, { fill: own ? "green" : null, ink: own ? "green" : "grey" });
      svg.text(290, y + 16, bytes / GIB, { size: 12, anchor: "end", "font-weight": own ? "bold" : "normal" });
    }
    const x = 52 + 190 * weights / most;
    svg.line(x, 20, x, 204, { ink: "ink", "stroke-dasharray": "5 4" });
    svg.text(x + 6, 216, `all weights: ${(weights / GIB).toFixed(1)}`, { size: 12 });
    svg.text(0, 248, "keys of tokens computed so far", { size: 12 });
    const sum = used => (used * (used + 1) - PROMPT * (PROMPT - 1)) / 2;  // of PROMPT to used
    const without = sum(PROMPT + steps.value), all = sum(SLOTS);
    [["kept", PROMPT + steps.value, true], ["not kept", without, false]].forEach(([label, count, own], i) => {
      const y = 258 + 32 * i, chosen = own === kept.value;
      svg.text(0, y + 16, label, { size: 12, "font-weight": chosen ? "bold" : "normal" });
      svg.rect(58, y, 220 * count / all, 22, { fill: chosen ? "orange" : null, ink: chosen ? "orange" : "grey" });
      svg.text(64 + 220 * count / all, y + 16, count, { size: 12, "font-weight": chosen ? "bold" : "normal" });
    });
  });

  figure.values(read);

  figure.words(() => {
    const { G, used, now, computed, bytes, bytesUsed, full, scores } = read();
    const share = G === H ? "Every query head has keys of its own"
      : `${H / G} query heads share each key/value head`;
    const ending = `${share}; the newest token takes ${scores.toLocaleString("en")} scores in ${LAYERS} layers, `
      + "whatever G is.";
    const count = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
    if (!kept.value) return `Nothing is kept: this step computes keys and values of all ${used} tokens anew, `
      + `${computed} so far. ${ending}`;
    return `A prompt of ${PROMPT} tokens and ${count(steps.value, "step")} of one token: ${used} of ${SLOTS} slots `
      + `hold ${size(bytesUsed)}, all ${SLOTS} take ${size(bytes)}, and a full context ${size(full)}. This step `
      + `computed keys and values of ${count(now, "token")}, ${computed} so far. ${ending}`;
  });
});
