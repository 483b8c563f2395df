"use strict";
// Chapter 5: which canvas a picture of any size gets, how large it lies there, and what stays
// black; one pixel more can quadruple the tiles.
mllama.figure("canvas_map", figure => {
  const { canvases, chooseCanvas, resizedSize } = mllama;
  const TILE = 560, MOST = 2500, UNIT = 250 / MOST;  // both drawings: so many units a pixel
  const named = ([rows, columns]) => `${rows} x ${columns}`;
  const SIZES = {
    "561 x 561, a pixel too large": [561, 561], "560 x 560, just one tile": [560, 560],
    "427 x 640, the temple": [427, 640], "1080 x 1920, a screenshot": [1080, 1920],
    "900 x 1800, twice as wide": [900, 1800], "900 x 1799, a column less": [900, 1799],
  }, FREE = "as dragged";

  const size = figure.choice({ label: "Begin with", options: [...Object.keys(SIZES), FREE] });
  const h = figure.slider({ label: "Height", min: 1, max: MOST, value: 561 });
  const w = figure.slider({ label: "Width", min: 1, max: MOST, value: 561 });
  const put = (height, width) => {
    h.value = Math.min(Math.max(Math.round(height), 1), MOST);
    w.value = Math.min(Math.max(Math.round(width), 1), MOST);
  };
  size.input.addEventListener("input", () => {
    const chosen = size.value;
    if (chosen !== FREE) put(...SIZES[chosen]);
    size.input.value = chosen;
  });
  for (const side of [h, w]) side.input.addEventListener("input", () => { size.input.value = FREE; });

  const state = (height = h.value, width = w.value) => {
    const canvas = chooseCanvas(height, width, TILE), shown = resizedSize(height, width, canvas, TILE);
    const tiles = canvas[0] * canvas[1], scale = ([r, c]) => Math.min(r * TILE / height, c * TILE / width);
    return {
      canvas, shown, tiles, scales: canvases().map(scale),
      id: canvases().map(named).indexOf(named(canvas)) + 1,
      padding: 1 - shown[0] * shown[1] / (tiles * TILE ** 2),
    };
  };

  // Each canvas's region of the map, in bands of 10 rows: where the choice changes along a row is
  // looked for between places 70 pixels apart.
  const bands = Object.fromEntries(canvases().map(canvas => [named(canvas), ""]));
  for (let y = 10; y <= MOST; y += 10) {
    const at = x => named(chooseCanvas(y, x, TILE));
    const add = (name, from, to) => { bands[name] += `M${from} ${y - 10}H${to}V${y}H${from}z`; };
    let begin = 0, left = at(1);
    for (let x = 1; x < MOST; x += 70) {
      let low = x, high = Math.min(x + 70, MOST);
      const right = at(high);
      if (right === left) continue;
      while (high - low > 1) {
        const middle = low + high >> 1;
        if (at(middle) === left) low = middle;
        else high = middle;
      }
      add(left, begin, low);
      [begin, left] = [low, right];
    }
    add(left, begin, MOST);
  }
  const LABELS = { "1 x 1": [280, 280], "1 x 2": [840, 280], "1 x 3": [1400, 280], "1 x 4": [2130, 280],
    "2 x 1": [280, 840], "2 x 2": [1700, 1700], "3 x 1": [280, 1400], "4 x 1": [280, 2130] };

  const map = figure.drawing({ width: 290, height: 292 }, svg => {
    const { canvas } = state(), X = 36, Y = 36;
    svg.text(0, 12, "Sizes; stronger grey: more tiles", { size: 12 });
    for (let edge = 0; edge < MOST; edge += TILE) {
      svg.text(X + UNIT * edge, 30, edge, { size: 12, anchor: "middle" });
      svg.text(X - 5, Y + UNIT * edge + 4, edge, { size: 12, anchor: "end" });
    }
    for (const pair of canvases()) {
      const chosen = named(pair) === named(canvas);
      svg.add("path", { d: bands[named(pair)], transform: `translate(${X} ${Y}) scale(${UNIT})`,
        fill: chosen ? "orange" : "grey", "fill-opacity": chosen ? 0.55 : 0.12 * pair[0] * pair[1],
        "shape-rendering": "crispEdges" });
    }
    for (const [name, [x, y]] of Object.entries(LABELS))
      svg.text(X + UNIT * x, Y + UNIT * y + 4, name, { anchor: "middle" });
    svg.rect(X, Y, UNIT * w.value, UNIT * h.value, { ink: "blue", "stroke-width": 2.5 });
    svg.circle(X + UNIT * w.value, Y + UNIT * h.value, 9, { fill: "blue", "data-drag": "corner" });
  });
  map.onDrag((_, x, y) => put((y - 36) / UNIT, (x - 36) / UNIT));

  figure.drawing({ width: 230, height: 292 }, svg => {
    const { canvas: [rows, columns], shown: [height, width], padding } = state(), side = UNIT * TILE;
    svg.text(2, 12, `On canvas ${rows} x ${columns} it is ${height} x ${width}`, { size: 12 });
    svg.text(2, 30, `black: ${Math.round(100 * padding)} % of the canvas`, { size: 12 });
    svg.add("rect", { x: 2, y: 36, width: columns * side, height: rows * side, style: "fill: #000", ink: "grey" });
    svg.rect(2, 36, UNIT * width, UNIT * height, { fill: "blue" });
    for (let r = 0; r <= rows; r++) svg.line(2, 36 + r * side, 2 + columns * side, 36 + r * side, { ink: "grey" });
    for (let c = 0; c <= columns; c++) svg.line(2 + c * side, 36, 2 + c * side, 36 + rows * side, { ink: "grey" });
  });

  figure.drawing({ width: 230, height: 292 }, svg => {
    const { canvas, scales } = state(), unit = 56;
    svg.text(0, 12, "Scale: how much larger it could be", { size: 12 });
    svg.text(42 + unit, 30, "1: fits exactly", { size: 12, anchor: "middle" });
    scales.forEach((scale, i) => {
      const y = 42 + 31 * i, chosen = named(canvases()[i]) === named(canvas);
      svg.text(0, y + 15, named(canvases()[i]));
      svg.rect(42, y, unit * Math.min(scale, 2), 20, { fill: chosen ? "orange" : "grey" });
      svg.text(230, y + 15, scale < 10 ? scale.toFixed(3) : scale.toFixed(0), { anchor: "end" });
      if (chosen) svg.text(232 - 38, y + 15, "taken", { anchor: "end" });
    });
    svg.line(42 + unit, 36, 42 + unit, 288, { "stroke-dasharray": "3 3" });
  });

  figure.values(() => state());

  figure.words(() => {
    const { canvas, shown, tiles, id, padding, scales } = state(), fits = scales.some(scale => scale >= 1);
    const tile = tiles === 1 ? "1 tile" : `${tiles} tiles`, place = `canvas ${named(canvas)} (${tile}, id ${id})`;
    const steps = [[-1, -1, "One row and one column less"], [-1, 0, "One row less"], [0, -1, "One column less"],
      [1, 1, "One row and one column more"], [1, 0, "One row more"], [0, 1, "One column more"]];
    const cliff = steps.filter(([dy, dx]) => h.value + dy > 0 && w.value + dx > 0).find(([dy, dx]) =>
      named(state(h.value + dy, w.value + dx).canvas) !== named(canvas));
    return `A picture of ${h.value} x ${w.value} pixels ${fits ? "fits best on" : "fits nowhere and shrinks least on"} `
      + `${place}. It lies there as ${shown.join(" x ")}, and ${Math.round(100 * padding)} % of the canvas is padding.`
      + (cliff ? ` ${cliff[2]}, and it would be ${named(state(h.value + cliff[0], w.value + cliff[1]).canvas)}.` : "");
  });
});
