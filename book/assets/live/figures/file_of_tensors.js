"use strict";
// Chapter 15: a safetensors file, byte by byte: a length, names with places, numbers. An offset or a shape is
// edited, and one of four checks refuses the file, or none does and the numbers are wrong.
mllama.figure("file_of_tensors", figure => {
  const { readSafetensors } = mllama;
  const WRITTEN = { gate: [0.5], norm: [1.5, 1.25, 1.75], weight: [1, 2, 3, 4] };
  const INKS = { gate: "blue", norm: "orange", weight: "green" }, NAMES = Object.keys(WRITTEN);
  const asWritten = () => ({
    gate: { shape: [1], span: [0, 2] }, norm: { shape: [3], span: [2, 8] },
    weight: { shape: [2, 2], span: [8, 16] }, extra: 0,
  });
  const STARTS = {
    "as written": () => asWritten(),
    "weight two bytes early": () => ({ ...asWritten(), weight: { shape: [2, 2], span: [6, 14] } }),
    "norm of another shape": () => ({ ...asWritten(), norm: { shape: [2, 2], span: [2, 8] } }),
    "places exchanged": () => ({ weight: { shape: [2, 2], span: [0, 8] }, norm: { shape: [3], span: [8, 14] },
      gate: { shape: [1], span: [14, 16] }, extra: 0 }),
    "cut off": () => ({ ...asWritten(), extra: -4 }),
  };
  let state = STARTS["weight two bytes early"]();

  const start = figure.choice({ label: "Start from", options: Object.keys(STARTS), value: "weight two bytes early" });
  const tensor = figure.choice({ label: "Tensor", options: NAMES, value: "weight" });
  const begin = figure.slider({ label: "Begins at byte", min: 0, max: 20, value: 6 });
  const end = figure.slider({ label: "Ends at byte", min: 0, max: 20, value: 14 });
  const shape = figure.typed({ label: "Shape", value: "2, 2" });
  shape.input.size = 8;
  const extra = figure.slider({ label: "Bytes at the end", min: -20, max: 4, value: 0,
    format: n => (n < 0 ? `${-n} cut off` : n ? `${n} more` : "all") });

  const shown = sizes => `[${sizes.join(", ")}]`;
  const parsed = text => (text.match(/\d+/g) ?? []).slice(0, 4).map(n => Math.min(Number(n), 99));
  const showState = () => {  // what is edited, in the controls
    const { shape: sizes, span } = state[tensor.value];
    [begin.input.value, end.input.value, extra.input.value] = [...span, state.extra];
    shape.input.value = sizes.join(", ");
    for (const { input } of [begin, end, extra]) input.dispatchEvent(new Event("input"));
  };
  const edit = (control, change) => control.input.addEventListener("input", () => {
    change();
    figure.redraw();
  });
  edit(start, () => { state = STARTS[start.value](); showState(); });
  edit(tensor, showState);
  edit(begin, () => { state[tensor.value].span[0] = begin.value; });
  edit(end, () => { state[tensor.value].span[1] = end.value; });
  edit(shape, () => { state[tensor.value].shape = parsed(shape.value); });
  edit(extra, () => { state.extra = extra.value; });

  // Numbers in bf16: the upper half of fp32.
  const halves = numbers => [...new Uint8Array(Float32Array.from(numbers).buffer)].filter((_, i) => i % 4 > 1);
  const DATA = NAMES.flatMap(name => halves(WRITTEN[name]));

  // The file of these tensors: its bytes, how long its header is, and where each entry stands in that.
  function fileOf(names) {
    const entry = name => `"${name}":` + JSON.stringify(
      { dtype: "BF16", shape: state[name].shape, data_offsets: state[name].span });
    const text = `{${names.map(entry).join(",")}}`, header = text.padEnd(8 * Math.ceil(text.length / 8));
    const first = new DataView(new ArrayBuffer(8));
    first.setBigUint64(0, BigInt(header.length), true);
    const data = DATA.concat([0, 0, 0, 0]).slice(0, Math.max(0, DATA.length + state.extra));
    const all = [...new Uint8Array(first.buffer), ...new TextEncoder().encode(header), ...data];
    const bytes = all.slice(0, all.length - Math.max(0, -state.extra - DATA.length));  // into the header
    const entries = Object.fromEntries(names.map(
      name => [name, [8 + text.indexOf(entry(name)), entry(name).length]]));
    return { bytes, length: header.length, entries };
  }

  // The checks of `read_safetensors`, in its order: each a name and what it finds wrong, or null.
  function checks() {
    const { bytes, length } = fileOf(NAMES), size = bytes.length;
    const count = sizes => sizes.reduce((a, b) => a * b, 1);
    const odd = NAMES.find(name => {
      const { shape: sizes, span } = state[name];
      return span[1] - span[0] !== 2 * count(sizes);
    });
    let covered = 0, gap = null;
    const inOrder = NAMES.map(name => [...state[name].span, name]).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    for (const [from, to, name] of inOrder) {
      if (from !== covered) gap ??= `${name} begins at byte ${from}, what is before ends at ${covered}`;
      covered = to;
    }
    const ends = 8 + length + covered;
    return [
      ["The header fits into the file",
        8 + length > size ? `its header does not fit into its ${size} bytes` : null],
      ["Bytes suit the shape", odd
        ? `${odd} has ${state[odd].span[1] - state[odd].span[0]} bytes for ${shown(state[odd].shape)}` : null],
      ["No gap, no overlap", gap],
      ["The file ends with the last", ends !== size ? `its tensors end at byte ${ends}, it has ${size}` : null],
    ];
  }

  // What a reader without checks makes of the bytes: the engine's own.
  function numbers(name) {
    try {
      return Array.from(readSafetensors(Uint8Array.from(fileOf([name]).bytes).buffer).get(name).data);
    } catch {
      return [];  // half a number, or no header
    }
  }
  const same = name => String(numbers(name)) === String(WRITTEN[name])
    && String(state[name].shape) === String(asWritten()[name].shape);

  const CELL = 18, LEFT = 30;
  const grid = figure.drawing({ width: 320, height: 285 }, svg => {
    const { bytes, length, entries } = fileOf(NAMES);
    const at = i => [LEFT + CELL * (i % 16), 5 + 20 * Math.floor(i / 16)];
    const mark = (from, to, ink, chosen, more = {}) => {
      for (let i = Math.max(from, 0); i < Math.min(to, bytes.length); i++)
        svg.rect(...at(i), CELL, 19, { fill: ink, "fill-opacity": chosen ? 0.4 : 0.13, ...more });
    };
    mark(0, 8, "purple", true);
    for (const name of NAMES) {
      const [from, many] = entries[name], own = { "data-name": name }, chosen = name === tensor.value;
      mark(from, from + many, INKS[name], chosen, own);
      const [first, last] = state[name].span.map(place => 8 + length + place);
      mark(first, last, INKS[name], chosen, own);
    }
    bytes.forEach((byte, i) => {
      const [x, y] = at(i), inHeader = i >= 8 && i < 8 + length;
      if (i % 16 === 0) svg.text(LEFT - 5, y + 14, i, { anchor: "end", size: 12, fill: "grey" });
      svg.text(x + CELL / 2, y + 14, inHeader ? String.fromCharCode(byte) : byte.toString(16).padStart(2, "0"),
        { anchor: "middle", size: 12, "pointer-events": "none" });
    });
  });
  grid.svg.addEventListener("click", event => {
    if (event.target.dataset.name) tensor.value = event.target.dataset.name;
  });

  figure.drawing({ width: 320, height: 250 }, svg => {
    svg.text(0, 16, "Checks, in this order", { size: 14 });
    const all = checks(), stop = all.findIndex(([, wrong]) => wrong);
    all.forEach(([name], i) => {
      const sign = stop < 0 || i < stop ? "✓" : i === stop ? "✗" : "·", fill = i === stop ? "orange" : "ink";
      svg.text(6, 40 + 22 * i, sign, { fill, size: 15 });
      svg.text(28, 40 + 22 * i, i === stop ? `${name}: no` : name, { fill });
    });
    svg.text(0, 152, "Read without checks (≠: not as written)", { size: 14 });
    NAMES.forEach((name, i) => {
      const read = numbers(name), y = 176 + 26 * i;
      svg.rect(4, y - 12, 14, 14, { fill: INKS[name] });
      const list = read.slice(0, 4).map(n => Number(n.toPrecision(3))).join(", ") + (read.length > 4 ? ", …" : "");
      svg.text(28, y, `${name}: ${list || "none"}${same(name) ? "" : "  ≠"}`);
    });
  });

  figure.values(() => ({
    bytes: fileOf(NAMES).bytes, refused: checks().find(([, wrong]) => wrong)?.[1] ?? null,
    numbers: Object.fromEntries(NAMES.map(name => [name, numbers(name)])),
  }));

  figure.words(() => {
    const { bytes, length } = fileOf(NAMES), wrong = NAMES.filter(name => !same(name));
    const file = `${bytes.length} bytes: 8 for the length ${length} (purple), the header, and the numbers in bf16`;
    const refused = checks().find(([, found]) => found)?.[1];
    const listed = wrong.join(", ").replace(/, (\w+)$/, " and $1");
    const amiss = wrong.length ? `${listed} would not be what was written` : "no number would be wrong";
    if (refused) return `${file}. Refused: ${refused}. Read without checks, ${amiss}.`;
    return `${file}. Accepted: every check holds. ${wrong.length
      ? `Yet ${listed} ${wrong.length > 1 ? "are" : "is"} not what was written, and nothing in the file tells.`
      : "All tensors are what was written."}`;
  });
});
