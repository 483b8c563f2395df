"use strict";
// Chapter 12: which matrices a pattern of names chooses. The same name stands in vision, in
// self-attention and in cross-attention, so a pattern reaches further than it looks.
mllama.figure("target_patterns", figure => {
  // D, F, keys and layers of the text; D, F, layers and global layers of vision; W, parameters.
  const SIZES = {
    "the small model": { d: 128, f: 320, keys: 64, layers: 7, cross: [1, 3, 5], states: 2, v: 128, vf: 512,
      local: 4, global: 2, words: 719, whole: 2792909 },
    "the 11B": { d: 4096, f: 14336, keys: 1024, layers: 40, cross: [3, 8, 13, 18, 23, 28, 33, 38], states: 5,
      v: 1280, vf: 5120, local: 32, global: 8, words: 128256, whole: 10670220835 },
  };
  const TEXT = "language_model.model.layers", VISION = "vision_model.transformer.layers";
  const GLOBAL = "vision_model.global_transformer.layers";

  // All modules in their order: { name, kind } and, where it is a matrix, its sizes, the groups it
  // belongs to (the widest first), and its place on the map.
  function modulesOf({ d, f, keys, layers, cross, states, v, vf, local, global, words }) {
    const found = [];
    const part = (name, kind) => found.push({ name, kind });
    const matrix = (name, from, to, groups, row, column) =>
      found.push({ name, kind: "Linear", from, to, groups, row, column });
    const vision = (stack, kind, count, group) => {
      part(stack.replace(/\.layers$/, ""), "VisionLayers");
      part(stack, "ModuleList");
      for (let i = 0; i < count; i++) {
        part(`${stack}.${i}`, kind);
        part(`${stack}.${i}.input_layernorm`, "LayerNorm");
        part(`${stack}.${i}.self_attn`, "VisionAttention");
        [..."qkvo"].forEach((letter, column) =>
          matrix(`${stack}.${i}.self_attn.${letter}_proj`, v, v, [group], i, column));
        part(`${stack}.${i}.post_attention_layernorm`, "LayerNorm");
        part(`${stack}.${i}.mlp`, "VisionMLP");
        matrix(`${stack}.${i}.mlp.fc1`, v, vf, [group], i, 4);
        matrix(`${stack}.${i}.mlp.fc2`, vf, v, [group], i, 5);
      }
    };
    const parts = (...pairs) => { for (const [name, kind] of pairs) part(name, kind); };
    parts(["vision_model", "VisionModel"], ["vision_model.patch_embedding", "Conv2d"],
      ["vision_model.pre_tile_positional_embedding", "TileEmbedding"],
      ["vision_model.pre_tile_positional_embedding.embedding", "Embedding"],
      ["vision_model.gated_positional_embedding", "PositionEmbedding"],
      ["vision_model.gated_positional_embedding.tile_embedding", "Embedding"],
      ["vision_model.layernorm_pre", "LayerNorm"]);
    vision(VISION, "VisionLayer", local, "vision.local");
    parts(["vision_model.layernorm_post", "LayerNorm"],
      ["vision_model.post_tile_positional_embedding", "TileEmbedding"],
      ["vision_model.post_tile_positional_embedding.embedding", "Embedding"]);
    vision(GLOBAL, "GatedVisionLayer", global, "vision.global");
    matrix("multi_modal_projector", v * (1 + states), d, ["projector"], 0, 0);
    parts(["language_model", "LanguageModel"], ["language_model.model", "TextModel"],
      ["language_model.model.embed_tokens", "Embedding"], [TEXT, "ModuleList"]);
    for (let i = 0; i < layers; i++) {
      const crossed = cross.includes(i), attention = `${TEXT}.${i}.${crossed ? "cross" : "self"}_attn`;
      const groups = (wide, narrow) => (crossed ? ["cross"] : [wide, `${wide}.${narrow}`]);
      parts([`${TEXT}.${i}`, crossed ? "CrossAttentionLayer" : "DecoderLayer"],
        [`${TEXT}.${i}.input_layernorm`, "RMSNorm"], [attention, crossed ? "CrossAttention" : "SelfAttention"]);
      [..."qkvo"].forEach((letter, column) => matrix(`${attention}.${letter}_proj`, d,
        "kv".includes(letter) ? keys : d, groups("self", letter), i, column));
      if (crossed) parts([`${attention}.q_norm`, "RMSNorm"], [`${attention}.k_norm`, "RMSNorm"]);
      parts([`${TEXT}.${i}.post_attention_layernorm`, "RMSNorm"], [`${TEXT}.${i}.mlp`, "MLP"]);
      ["gate", "up", "down"].forEach((name, n) => matrix(`${TEXT}.${i}.mlp.${name}_proj`, n < 2 ? d : f,
        n < 2 ? f : d, groups("mlp", name), i, 4 + n));
    }
    part("language_model.model.norm", "RMSNorm");
    matrix("language_model.lm_head", d, words, ["head"], 0, 0);
    return found;
  }
  const MODULES = Object.fromEntries(Object.entries(SIZES).map(([name, sizes]) => [name, modulesOf(sizes)]));
  const GROUPS = ["self", "self.q", "self.k", "self.v", "self.o", "mlp", "mlp.gate", "mlp.up", "mlp.down",
    "cross", "vision.local", "vision.global", "projector", "head"];
  const PLACES = { "vision.local": "in local vision", "vision.global": "in global vision",
    projector: "the projector", self: "in self-attention", mlp: "in the MLPs of its layers",
    cross: "in cross-attention layers", head: "the head" };

  // * any letters, ? one, [abc] or [a-c] one of these, [!abc] none of them. A range that runs
  // backwards holds nothing.
  const asPattern = text => new RegExp("^" + text.replace(/\[(!?)([^\]]+)\]|[^]/gu, (all, not, set) => {
    const backwards = [...(set ?? "").matchAll(/(.)-(.)/gu)].some(([, a, b]) => a > b);
    if (backwards) return not ? "[^]" : "(?!)";
    if (set !== undefined) return `[${not ? "^" : ""}${set.replace(/[\\\]^[]/g, "\\$&")}]`;
    return all === "*" ? "[^]*" : all === "?" ? "[^]" : all.replace(/[\\^$.|+()[\]{}]/g, "\\$&");
  }) + "$", "u");

  // As the package does: every target has to match, and to match matrices alone.
  function find(modules, text, rank) {
    const ranks = new Map(), refuse = refused => ({ ranks: new Map(), refused });
    for (const target of text.split(",").map(one => one.trim())) {
      const [, group, own] = target.match(/^([^:]*)(?::(.*))?$/s);
      if (own !== undefined && !/^[1-9][0-9]{0,8}$/.test(own))
        return refuse(`“${target}” ends in “${own}”, which is no rank.`);
      const matches = group === "all" ? m => m.groups && m.groups[0] !== "head"
        : GROUPS.includes(group) ? m => m.groups?.includes(group)
          : (pattern => m => pattern.test(m.name))(asPattern(group));
      const matching = modules.filter(matches), other = matching.find(m => !m.groups);
      if (!matching.length) return refuse(`“${group}” matches no layer of this model.`);
      if (other) return refuse(`“${group}” matches ${other.name}, which is no matrix but a ${other.kind}.`);
      for (const { name } of matching) ranks.set(name, own === undefined ? rank : Number(own));
    }
    const small = modules.find(m => ranks.get(m.name) > Math.min(m.from, m.to));
    return small ? refuse(`${small.name} is ${small.to} x ${small.from}: it cannot have rank ${ranks.get(small.name)}.`)
      : { ranks, refused: null };
  }

  const typed = figure.typed({ label: "Targets", value: "*q_proj" });
  const EXAMPLES = ["*q_proj", "*.self_attn.q_proj", "self.q", "*.up_proj", "*.fc1", "*.cross_attn.*_proj",
    "self,mlp,cross", "all", "self:2,head:64", "vision_model.*", "attention"];
  const example = figure.choice({ label: "or one of these", options: EXAMPLES });
  example.input.addEventListener("input", () => { typed.value = example.value; });
  const which = figure.choice({ label: "In", options: Object.keys(SIZES) });
  const rank = figure.slider({ label: "Rank", min: 1, max: 64, value: 8 });

  const state = () => {
    const modules = MODULES[which.value], { ranks, refused } = find(modules, typed.value, rank.value);
    const chosen = modules.filter(m => ranks.has(m.name)), counts = {};
    for (const { groups: [group] } of chosen) counts[group] = (counts[group] ?? 0) + 1;
    return { modules, chosen, counts, refused, whole: SIZES[which.value].whole,
      trains: chosen.reduce((sum, m) => sum + ranks.get(m.name) * (m.from + m.to), 0) };
  };

  // One row a layer, one column a name; chosen matrices are full, the others outlines.
  function map(svg, title, columns, stacks) {
    const { modules, chosen } = state(), cell = 26, wide = cell * columns.length, left = 316 - wide;
    const rows = modules.filter(m => m.column === 0 && stacks.some(({ groups }) => groups.includes(m.groups[0])));
    const height = Math.min(24, 210 / rows.length), gap = height > 8 ? 2 : 1;
    svg.text(4, 14, title);
    columns.forEach((name, i) => svg.text(left + cell * (i + 0.5), 32, name, { size: 12, anchor: "middle" }));
    let y = 40;
    for (const { groups, labels, ink } of stacks) {
      const members = modules.filter(m => m.groups && groups.includes(m.groups[0])), one = members.length === 1;
      labels.forEach((label, i) => svg.text(4, y + 13 + 17 * i, label, { size: 12, fill: ink[i] }));
      for (const m of members) {
        const high = one ? 16 : height - gap, colour = ink[m.groups[0] === "cross" ? 1 : 0];
        const box = [left + (one ? 0 : cell * m.column) + 1, y + height * m.row, (one ? wide : cell) - 3, high];
        svg.rect(...box, chosen.includes(m) ? { fill: colour } : { ink: "grey", "stroke-width": 0.6 });
        if (m.column === 0 && colour === "orange") svg.line(left - 10, y + height * m.row + high / 2, left - 3,
          y + height * m.row + high / 2, { ink: "orange" });
      }
      y += (one ? 16 : height * (1 + Math.max(...members.map(m => m.row)))) + 10;
    }
  }
  figure.drawing({ width: 320, height: 292 }, svg => map(svg, "Vision", [..."qkvo", "fc1", "fc2"], [
    { groups: ["vision.local"], labels: ["local layers"], ink: ["blue"] },
    { groups: ["vision.global"], labels: ["global layers"], ink: ["green"] },
    { groups: ["projector"], labels: ["projector"], ink: ["purple"] },
  ]));
  figure.drawing({ width: 320, height: 292 }, svg => map(svg, "Text", [..."qkvo", "gate", "up", "down"], [
    { groups: ["self", "mlp", "cross"], labels: ["self-attention", "– cross-attention"], ink: ["blue", "orange"] },
    { groups: ["head"], labels: ["head"], ink: ["purple"] },
  ]));

  figure.values(() => {
    const { modules, chosen, ...rest } = state();
    return { modules: modules.map(m => [m.name, m.kind]), chosen: chosen.map(m => m.name), ...rest };
  });

  figure.words(() => {
    const { modules, chosen, counts, refused, whole, trains } = state();
    if (refused) return `Refused: ${refused} Nothing is chosen.`;
    const list = Object.entries(counts).map(([group, n]) =>
      (["projector", "head"].includes(group) ? "" : `${n} `) + PLACES[group]);
    const all = modules.filter(m => m.groups).length, share = (100 * trains / whole).toFixed(2);
    return `${typed.value} chooses ${chosen.length} of ${all} matrices: ${list.join(", ")}. ${trains.toLocaleString("en")} `
      + `parameters train, ${share} % of the ${whole.toLocaleString("en")} of ${which.value}.`;
  });
});
