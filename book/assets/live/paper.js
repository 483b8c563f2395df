"use strict";
// Paper to draw on, and what the model is shown of it.
(() => {
  // The inks of chapter 11's pictures.
  const COLOURS = {
    red: "rgb(214, 36, 40)", orange: "rgb(242, 142, 20)", green: "rgb(34, 150, 60)",
    blue: "rgb(30, 90, 214)", purple: "rgb(140, 50, 170)", black: "rgb(35, 35, 38)",
  };
  const SHAPES = ["circle", "square", "triangle", "star"];
  const SIDE = 112;  // of the paper, in its own units
  const PAPER = "rgb(244, 242, 238)";
  const HEIGHT = 22, PEN = 4, MARGIN = 6;  // of a thing as the model knows them, in pixels

  // A mark is a stroke, { colour, points: [[x, y], ...] }, or a stamp, { colour, shape, at, size }.
  function boxOf({ points, at, size }) {
    if (at) return [at[0] - size / 2, at[1] - size / 2, at[0] + size / 2, at[1] + size / 2];
    const [xs, ys] = [0, 1].map(i => points.map(p => p[i]));
    return [Math.min(...xs), Math.min(...ys), Math.max(...xs), Math.max(...ys)];
  }

  const around = boxes => [0, 1, 2, 3].map(i =>
    (i < 2 ? Math.min : Math.max)(...boxes.map(box => box[i])));

  // Boxes of the things that marks make: marks that touch belong together.
  function things(marks, reach = 3) {
    let boxes = marks.map(boxOf);
    for (let merged = true; merged;) {
      merged = false;
      for (let i = 0; i < boxes.length && !merged; i++) for (let j = 0; j < i && !merged; j++) {
        const [a, b] = [boxes[i], boxes[j]];
        if (a[0] - reach < b[2] && b[0] - reach < a[2] && a[1] - reach < b[3] && b[1] - reach < a[3]) {
          boxes = [...boxes.filter((_, n) => n !== i && n !== j), around([a, b])];
          merged = true;
        }
      }
    }
    return boxes;
  }

  function drawMark(g, mark, place, zoom, pen) {
    g.strokeStyle = g.fillStyle = COLOURS[mark.colour];
    g.lineWidth = pen;
    g.lineCap = g.lineJoin = "round";
    g.beginPath();
    if (mark.at) outline(g, mark.shape, ...place(mark.at), mark.size * zoom / 2);
    else mark.points.forEach((point, i) => g[i ? "lineTo" : "moveTo"](...place(point)));
    if (mark.at) return g.fill();
    if (mark.points.length === 1) g.lineTo(...place(mark.points[0]));  // a dot
    g.stroke();
  }

  function outline(g, shape, x, y, r) {
    if (shape === "circle") g.arc(x, y, r, 0, 2 * Math.PI);
    else if (shape === "square") g.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r);
    else {
      const radii = shape === "triangle" ? [r, r, r] : Array(5).fill([r, 0.4 * r]).flat();
      radii.forEach((radius, i) => {
        const turn = 2 * Math.PI * i / radii.length;
        g[i ? "lineTo" : "moveTo"](x + radius * Math.sin(turn), y - radius * Math.cos(turn));
      });
      g.closePath();
    }
  }

  function blank(width, height) {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    const g = canvas.getContext("2d", { willReadFrequently: true });
    g.fillStyle = PAPER;
    g.fillRect(0, 0, width, height);
    return [canvas, g];
  }

  // The drawing as large as the things that the model was trained on: strokes drawn anew so that
  // a thing is 22 pixels high, on a paper as small as holds them, each where it was.
  function fitted(marks) {
    if (!marks.length) return blank(56, 56)[0];
    const boxes = things(marks), heights = boxes.map(b => Math.max(b[3] - b[1], 0.7 * (b[2] - b[0])));
    const middle = heights.sort((a, b) => a - b)[Math.floor(heights.length / 2)];
    const box = around(boxes), wide = box[2] - box[0], high = box[3] - box[1];
    // Four tiles hold 224 x 56, 112 x 112 or 56 x 224 pixels.
    const most = high < wide / 2 ? [224, 56] : wide < high / 2 ? [56, 224] : [112, 112];
    const zoom = Math.min(HEIGHT / Math.max(middle, 1),
      (most[0] - 2 * MARGIN) / wide, (most[1] - 2 * MARGIN) / high);
    const size = [wide, high].map(length => Math.max(56, Math.round(length * zoom) + 2 * MARGIN));
    const [canvas, g] = blank(...size);
    const corner = [wide, high].map((length, i) => {
      const free = size[i] - 2 * MARGIN - length * zoom, share = box[i] / Math.max(SIDE - length, 1);
      return MARGIN + free * Math.min(Math.max(share, 0), 1);
    });
    const place = ([x, y]) => [corner[0] + (x - box[0]) * zoom, corner[1] + (y - box[1]) * zoom];
    for (const mark of marks) drawMark(g, mark, place, zoom, PEN);
    return canvas;
  }

  // Show marks on a canvas as they were drawn.
  function showPaper(canvas, marks, pixels, cursor = null) {
    canvas.width = canvas.height = pixels;
    const g = canvas.getContext("2d"), zoom = pixels / SIDE;
    g.fillStyle = PAPER;
    g.fillRect(0, 0, pixels, pixels);
    for (const mark of marks) drawMark(g, mark, ([x, y]) => [x * zoom, y * zoom], zoom, PEN * zoom);
    if (!cursor) return;
    g.strokeStyle = "#000";
    g.lineWidth = 1;
    g.strokeRect(cursor[0] * zoom - 5, cursor[1] * zoom - 5, 10, 10);
  }

  Object.assign(mllama, { COLOURS, SHAPES, SIDE, things, fitted, showPaper });
})();
