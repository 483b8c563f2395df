"use strict";
// Chapter 20: on which pixels a kernel looks, with TensorFlow's padding and with the same on both sides.
mllama.figure("kernel_places", figure => {
  const CELL = 30, LEFT = 96, TOP = 30, MOST = 9, EDGE = 2;
  const size = figure.slider({ label: "Pixels a side", min: 4, max: MOST, value: 6 });
  const kernel = figure.choice({ label: "Kernel", options: ["3", "5"] });
  const stride = figure.choice({ label: "Stride", options: ["2", "1"] });
  const way = figure.choice({ label: "Padding", options: ["TensorFlow's", "the same on both sides"] });

  const range = n => [...Array(n).keys()];
  const wide = () => Number(kernel.value), step = () => Number(stride.value);
  const needed = () => Math.max((Math.ceil(size.value / step()) - 1) * step() + wide() - size.value, 0);
  const sides = () => {
    if (way.value !== "TensorFlow's") return [(wide() - 1) / 2, (wide() - 1) / 2];
    return [Math.floor(needed() / 2), needed() - Math.floor(needed() / 2)];
  };
  // For every place of a row the pixels under the kernel; those outside are below 0 or too large.
  const places = () => {
    const [before, behind] = sides();
    const count = Math.floor((size.value + before + behind - wide()) / step()) + 1;
    return range(count).map(place => range(wide()).map(k => place * step() - before + k));
  };
  const inside = pixel => pixel >= 0 && pixel < size.value;

  figure.drawing({ width: LEFT + (MOST + 2 * EDGE) * CELL + 8, height: TOP + MOST * CELL + 8 }, svg => {
    svg.text(LEFT, 14, "columns: pixels of a row, outside without a number", { size: 12, fill: "grey" });
    places().forEach((row, place) => {
      const y = TOP + CELL * place;
      svg.text(LEFT - 8, y + CELL * 0.65, `output ${place}`, { size: 12, anchor: "end" });
      range(size.value + 2 * EDGE).forEach(column => {
        const pixel = column - EDGE, under = row.includes(pixel);
        if (!under && !inside(pixel)) return;
        svg.rect(LEFT + CELL * column + 1, y + 1, CELL - 2, CELL - 2, under
          ? { fill: inside(pixel) ? "blue" : "orange", "fill-opacity": 0.6 } : { ink: "grey", "stroke-opacity": 0.4 });
        if (inside(pixel)) svg.text(LEFT + CELL * (column + 0.5), y + CELL * 0.65, pixel, { size: 11, anchor: "middle" });
      });
    });
  });

  figure.values(places);

  figure.words(() => {
    const [before, behind] = sides(), first = places()[0].filter(inside).length;
    return `${before} before and ${behind} behind are added, and ${places().length} places come out. `
      + `The first kernel lies on ${first} of the image's pixels in a row.`;
  });
});
