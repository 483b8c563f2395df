"use strict";
// Where a token of the answer was looked up, drawn over the picture.
(() => {
  const { patchMap } = mllama;

  // Draw a picture (an image or a canvas) in grey, and over it, in orange, weights [H, tiles·P]
  // of one layer: those of one head, or of all, averaged. `tiles` says where on its canvas the
  // picture lies; what is left of the canvas is drawn as well, since it is looked at too.
  function drawLook(target, source, tiles, weights, config, head, height) {
    const { image_size: size, patch_size: patch } = config.vision, side = size / patch;
    const [rows, columns] = tiles.canvas, scale = height / (rows * size);
    target.height = Math.round(rows * size * scale);
    target.width = Math.round(columns * size * scale);
    const g = target.getContext("2d"), [shownHeight, shownWidth] = tiles.shown;
    g.fillStyle = "#555";
    g.fillRect(0, 0, target.width, target.height);
    g.filter = "grayscale(1) brightness(1.05)";
    g.drawImage(source, 0, 0, shownWidth * scale, shownHeight * scale);
    g.filter = "none";
    const heads = config.text.num_attention_heads, perHead = weights.length / heads;
    const chosen = head === null ? weights : weights.subarray(head * perHead, (head + 1) * perHead);
    const map = patchMap(chosen, head === null ? heads : 1, tiles.canvas, side);
    const most = Math.max(...map, 1e-9), step = patch * scale;
    map.forEach((weight, i) => {
      const y = Math.floor(i / (columns * side)), x = i % (columns * side);
      g.fillStyle = `rgba(230, 110, 0, ${0.75 * weight / most})`;
      g.fillRect(x * step, y * step, step + 0.5, step + 0.5);
    });
    g.strokeStyle = "rgba(255, 255, 255, 0.8)";
    for (let r = 1; r < rows; r++) line(g, 0, r * size * scale, target.width, r * size * scale);
    for (let c = 1; c < columns; c++) line(g, c * size * scale, 0, c * size * scale, target.height);
    return map;
  }

  function line(g, ...[x0, y0, x1, y1]) {
    g.beginPath();
    g.moveTo(x0, y0);
    g.lineTo(x1, y1);
    g.stroke();
  }

  // In words: the share of attention on the patch that got most, and where that patch is.
  function lookInWords(map, columns) {
    const total = map.reduce((a, b) => a + b, 0), best = mllama.argmax(map), rows = map.length / columns;
    const third = (i, n, names) => names[Math.min(2, Math.floor(3 * i / n))];
    const vertical = third(Math.floor(best / columns), rows, ["top", "middle", "bottom"]);
    const horizontal = third(best % columns, columns, ["left", "centre", "right"]);
    return `${Math.round(100 * map[best] / total)} % on one patch, ${vertical} ${horizontal}`;
  }

  Object.assign(mllama, { drawLook, lookInWords });
})();
