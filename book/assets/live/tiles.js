"use strict";
// Chapter 5: from a picture of any size to at most four square tiles.
(() => {
  // Mean and standard deviation of red, green, blue over CLIP's training images, 0 to 1.
  const CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073];
  const CLIP_STD = [0.26862954, 0.26130258, 0.27577711];

  // All arrangements of at most maxTiles tiles, [rows, columns].
  function canvases(maxTiles = 4) {
    const all = [];
    for (let rows = 1; rows <= maxTiles; rows++)
      for (let columns = 1; rows * columns <= maxTiles; columns++) all.push([rows, columns]);
    return all;
  }

  // The canvas on which a picture is enlarged least, or else shrunk least.
  function chooseCanvas(height, width, tileSize, maxTiles = 4) {
    const options = canvases(maxTiles);
    const scales = options.map(([rows, columns]) => Math.min(
      Math.fround(rows * tileSize / height), Math.fround(columns * tileSize / width)));
    const enlarging = scales.filter(scale => scale >= 1);
    const best = enlarging.length ? Math.min(...enlarging) : Math.max(...scales);
    const tied = options.filter((_, i) => scales[i] === best);
    return tied.reduce((a, b) => (b[0] * b[1] < a[0] * a[1] ? b : a));
  }

  // The size, [height, width], to which a picture is scaled before it is pasted.
  function resizedSize(height, width, [rows, columns], tileSize) {
    const targetHeight = Math.min(Math.max(height, tileSize), rows * tileSize);
    const targetWidth = Math.min(Math.max(width, tileSize), columns * tileSize);
    const scaleHeight = targetHeight / height, scaleWidth = targetWidth / width;
    if (scaleWidth < scaleHeight) {
      const newHeight = Math.min(Math.floor(height * scaleWidth), targetHeight);
      return [Math.max(1, newHeight), targetWidth];
    }
    const newWidth = Math.min(Math.floor(width * scaleHeight), targetWidth);
    return [targetHeight, Math.max(1, newWidth)];
  }

  // Which pixels of a line of `from` make each of its `to` new ones, and with which weights:
  // Pillow's bilinear filter, which averages when it shrinks, in its whole numbers.
  function filterWeights(from, to) {
    const scale = from / to, reach = Math.max(scale, 1);
    return Array.from({ length: to }, (_, x) => {
      const centre = (x + 0.5) * scale;
      const first = Math.max(0, Math.trunc(centre - reach + 0.5));
      const end = Math.min(from, Math.trunc(centre + reach + 0.5));
      const shares = [];
      for (let i = first; i < end; i++)
        shares.push(Math.max(0, 1 - Math.abs((i - centre + 0.5) * (1 / reach))));
      const sum = shares.reduce((a, b) => a + b, 0);
      return { first, weights: shares.map(v => Math.trunc(0.5 + (v / sum) * 2 ** 22)) };
    });
  }

  function resizeWidth({ rgb, height, width }, newWidth) {
    const out = new Uint8Array(height * newWidth * 3);
    filterWeights(width, newWidth).forEach(({ first, weights }, x) => {
      for (let y = 0; y < height; y++) for (let c = 0; c < 3; c++) {
        let sum = 2 ** 21;
        weights.forEach((weight, i) => { sum += weight * rgb[(y * width + first + i) * 3 + c]; });
        out[(y * newWidth + x) * 3 + c] = Math.min(255, sum >> 22);
      }
    });
    return { rgb: out, height, width: newWidth };
  }

  function resizeHeight({ rgb, height, width }, newHeight) {
    const out = new Uint8Array(newHeight * width * 3);
    filterWeights(height, newHeight).forEach(({ first, weights }, y) => {
      for (let x = 0; x < 3 * width; x++) {
        let sum = 2 ** 21;
        weights.forEach((weight, i) => { sum += weight * rgb[(first + i) * width * 3 + x]; });
        out[y * width * 3 + x] = Math.min(255, sum >> 22);
      }
    });
    return { rgb: out, height: newHeight, width };
  }

  // A picture { rgb, height, width } in another size, as Pillow resizes it. Each pass rounds, so
  // their order shows; Pillow 13 begins with the one that saves work.
  function resize(picture, newHeight, newWidth) {
    const { height, width } = picture, less = height - newHeight;
    const upright = less > 0 && less > 2 * (width - newWidth);
    const across = p => (newWidth === width ? p : resizeWidth(p, newWidth));
    const down = p => (newHeight === height ? p : resizeHeight(p, newHeight));
    return upright ? across(down(picture)) : down(across(picture));
  }

  // A picture { rgb, height, width } to tiles: pixelValues [K, 3, S, S], normalised, missing
  // tiles 0; the aspectRatioId; the canvas [rows, columns]; and the size it was scaled to.
  function imageToTiles(picture, tileSize, maxTiles = 4) {
    const canvas = chooseCanvas(picture.height, picture.width, tileSize, maxTiles);
    const shown = resizedSize(picture.height, picture.width, canvas, tileSize);
    return pasteAndCut(resize(picture, ...shown), canvas, tileSize, maxTiles);
  }

  function pasteAndCut({ rgb, height, width }, canvas, tileSize, maxTiles) {
    const [rows, columns] = canvas, side = tileSize;
    const pixelValues = new Float32Array(maxTiles * 3 * side * side);
    for (let y = 0; y < rows * side; y++) for (let x = 0; x < columns * side; x++) {
      const tile = Math.floor(y / side) * columns + Math.floor(x / side);
      const inside = y < height && x < width;  // black around it
      for (let c = 0; c < 3; c++) {
        const value = inside ? rgb[(y * width + x) * 3 + c] : 0;
        pixelValues[((tile * 3 + c) * side + y % side) * side + x % side]
          = (value / 255 - CLIP_MEAN[c]) / CLIP_STD[c];
      }
    }
    const place = canvases(maxTiles).findIndex(([r, c]) => r === rows && c === columns);
    return {
      pixelValues, aspectRatioId: place + 1, canvas, numTiles: rows * columns,
      shown: [height, width],
    };
  }

  Object.assign(mllama, { CLIP_MEAN, CLIP_STD, canvases, chooseCanvas, resizedSize, resize, imageToTiles, pasteAndCut });
})();
