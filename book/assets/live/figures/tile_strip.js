"use strict";
// Chapter 5: a picture on its way to tiles, with the mistakes that processors make, and what the
// trained model answers then. None of them raises an error; some cost the answer.
mllama.figure("tile_strip", figure => {
  const { canvases, chooseCanvas, el, pasteAndCut, pixelsOf, resize, resizedSize } = mllama;
  const TILE = 56, QUESTION = "What is in the picture?";
  const { CLIP_MEAN: MEAN, CLIP_STD: STD } = mllama;
  const PICTURES = { "A single digit": "one", "Digits and shapes": "mixed", "Three digits": "digits",
    "A tall picture": "tall", "Your own": "own" };
  const MISTAKES = { "Stretched to fill the canvas": "stretched", "Shrunk without antialiasing": "plain",
    "Not normalised": "raw", "Padded after normalising": "late", "Id with width first": "id" };

  const chosen = figure.choice({ label: "Picture", options: Object.keys(PICTURES) });
  const file = el("input", { type: "file", accept: "image/*" });
  const { box } = figure.control("Your own picture", file, input => input.files[0]);
  const boxes = Object.keys(MISTAKES).map(label => figure.toggle({ label, value: MISTAKES[label] === "late" }));

  // Plain bilinear, PyTorch's default: the four pixels around a place, however far it shrinks.
  function plainResize({ rgb, height, width }, newHeight, newWidth) {
    const place = (i, from, to) => {
      const at = Math.max(0, (i + 0.5) * from / to - 0.5);
      return [Math.floor(at), Math.min(Math.floor(at) + 1, from - 1), at % 1];
    };
    const out = Uint8Array.from({ length: 3 * newHeight * newWidth }, (_, i) => {
      const c = i % 3, n = Math.floor(i / 3);
      const [y0, y1, down] = place(Math.floor(n / newWidth), height, newHeight);
      const [x0, x1, across] = place(n % newWidth, width, newWidth);
      const line = y => (1 - across) * rgb[3 * (y * width + x0) + c] + across * rgb[3 * (y * width + x1) + c];
      return Math.round((1 - down) * line(y0) + down * line(y1));
    });
    return { rgb: out, height: newHeight, width: newWidth };
  }

  // A picture's tiles with mistakes, as imageToTiles gives them.
  function toTiles(picture, mistakes) {
    const has = name => mistakes.includes(name);
    const [rows, columns] = chooseCanvas(picture.height, picture.width, TILE);
    const size = has("stretched") ? [rows * TILE, columns * TILE]
      : resizedSize(picture.height, picture.width, [rows, columns], TILE);
    const tiles = pasteAndCut((has("plain") ? plainResize : resize)(picture, ...size), [rows, columns], TILE, 4);
    for (let i = 0; i < 3 * TILE * TILE * tiles.numTiles; i++) {
      const c = Math.floor(i / TILE ** 2) % 3, tile = Math.floor(i / TILE ** 2 / 3), at = i % TILE ** 2;
      const y = Math.floor(tile / columns) * TILE + Math.floor(at / TILE), x = (tile % columns) * TILE + at % TILE;
      if (has("raw")) tiles.pixelValues[i] = tiles.pixelValues[i] * STD[c] + MEAN[c];
      if (has("late") && (y >= size[0] || x >= size[1])) tiles.pixelValues[i] = 0;
    }
    if (has("id")) tiles.aspectRatioId = canvases().findIndex(([r, c]) => r === columns && c === rows) + 1;
    return tiles;
  }

  // Numbers back to colours, as far as the encoder knows: a data URI of [3, S, S] from tile k.
  function seen({ pixelValues }, k) {
    const canvas = el("canvas", { width: TILE, height: TILE }), g = canvas.getContext("2d");
    const image = g.createImageData(TILE, TILE);
    for (let i = 0; i < TILE ** 2; i++) {
      for (let c = 0; c < 3; c++)
        image.data[4 * i + c] = 255 * (pixelValues[(3 * k + c) * TILE ** 2 + i] * STD[c] + MEAN[c]);
      image.data[4 * i + 3] = 255;
    }
    g.putImageData(image, 0, 0);
    return canvas.toDataURL();
  }

  const images = {}, answers = {};
  let live = null, run = 0, now = null, doing = "The picture is being fetched.";
  const keyOf = names => [now.name, ...names].join();

  // Take what the controls say: tiles, then, once the model is there, its answers.
  async function update() {
    const mine = ++run, name = PICTURES[chosen.value];
    const names = Object.values(MISTAKES).filter((_, i) => boxes[i].value);
    box.style.display = name === "own" ? "" : "none";
    await figure.packed();
    if (name !== "own") images[name] ??= el("img", { src: mllama.packed.pictures[name] });
    if (images[name]) await images[name].decode();
    if (mine !== run) return;
    doing = images[name] ? "" : "There is no picture yet that can be read: choose one.";
    now = null;
    if (images[name]) {
      const pixels = pixelsOf(images[name]), right = toTiles(pixels, []), tiles = toTiles(pixels, names);
      const same = right.aspectRatioId === tiles.aspectRatioId
        && right.pixelValues.every((value, i) => value === tiles.pixelValues[i]);
      const cut = tiles => [0, 1, 2, 3].map(k => seen(tiles, k));
      const pasted = toTiles(pixels, names.filter(name => name === "stretched" || name === "plain"));
      now = { name, names, source: images[name].src, pixels, right, tiles, same, pasted: cut(pasted),
        cut: cut(tiles) };
    }
    if (now && live) for (const [made, tiles] of [[[], now.right], [names, now.tiles]]) {
      if (keyOf(made) in answers) continue;
      doing = "The model is looking.";
      figure.redraw();
      await mllama.painted();
      if (mine !== run) return;
      answers[keyOf(made)] = answer(tiles);
      doing = "";
    }
    figure.redraw();
  }

  function answer(tiles) {
    const { model, tokenizer } = live;
    const prompt = tokenizer.encodeChat([{ role: "user", content: [null, QUESTION] }]);
    const written = mllama.generate(model, prompt, [model.encodeImage(tiles)], { stopIds: tokenizer.stopIds });
    return tokenizer.decode([...written].map(({ id }) => id).filter(id => !tokenizer.stopIds.has(id)));
  }

  for (const { input } of [chosen, ...boxes]) input.addEventListener("input", update);
  file.onchange = async () => {
    const image = el("img", { src: URL.createObjectURL(file.files[0]) });
    images.own = await image.decode().then(() => image, () => null);
    for (const key of Object.keys(answers)) if (key.startsWith("own")) delete answers[key];
    await update();
  };
  const button = figure.button({ label: "Ask the model (loads 5 MB)", press: async () => {
    doing = "The model is being loaded.";
    figure.redraw();
    button.remove();
    live = await figure.model();
    await update();
  } });

  // A panel with a title and a line below it; draw(svg, image) is called once there is a picture.
  function panel(width, title, line, draw) {
    figure.drawing({ width, height: 250 }, svg => {
      svg.text(0, 14, title);
      if (!now) return;
      svg.text(0, 32, line(), { size: 12 });
      draw(svg, (href, x, y, width, height) => {
        svg.add("image", { href, x, y, width, height, preserveAspectRatio: "none",
          style: "image-rendering: pixelated" });
        svg.rect(x, y, width, height, { ink: "grey", "stroke-dasharray": "4 3" });
      });
    });
  }

  panel(210, "1. As it comes", () => `${now.pixels.height} x ${now.pixels.width} pixels`, (svg, image) => {
    const { height, width } = now.pixels, scale = 200 / Math.max(height, width);
    image(now.source, 1, 42, scale * width, scale * height);
  });

  const onCanvas = () => `${now.tiles.canvas.join(" x ")} tiles; ${now.tiles.shown.join(" x ")} pixels`;
  panel(230, "2. Canvas, resized, pasted", onCanvas, (svg, image) => {
    const { canvas: [rows, columns], shown: [height, width] } = now.tiles;
    const side = 200 / Math.max(rows, columns, 2);
    for (let k = 0; k < rows * columns; k++)
      image(now.pasted[k], 1 + side * (k % columns), 42 + side * Math.floor(k / columns), side, side);
    svg.rect(1, 42, side * width / TILE, side * height / TILE, { ink: "blue", "stroke-width": 2.5 });
  });

  const withId = () => `with aspect_ratio_id ${now.tiles.aspectRatioId}`;
  panel(230, "3. Normalised, cut: what is read", withId, (svg, image) => {
    for (let k = 0; k < 4; k++) {
      const x = 1 + 110 * (k % 2), y = 42 + 106 * Math.floor(k / 2);
      image(now.cut[k], x, y, 84, 84);
      svg.text(x, y + 98, `tile ${k}${k < now.tiles.numTiles ? "" : ", empty"}`, { size: 12 });
    }
  });

  figure.values(() => now && { doing, name: now.name, names: now.names, same: now.same,
    aspectRatioId: now.tiles.aspectRatioId, pixelValues: Array.from(now.tiles.pixelValues), right: answers[keyOf([])],
    answer: answers[keyOf(now.names)] });

  figure.words(() => {
    if (!now) return doing;
    const { canvas, shown } = now.tiles, right = answers[keyOf([])], given = answers[keyOf(now.names)];
    const made = Object.keys(MISTAKES).filter(label => now.names.includes(MISTAKES[label])).join(", ");
    const told = !made ? "No mistake is made."
      : `Mistake: ${made.toLowerCase()}${now.same ? "; here it changes nothing" : ""}.`;
    const but = !made ? "" : right === given ? " Without mistakes, the same." : ` Without mistakes: ${right}.`;
    const asked = given === undefined ? "The model has not been asked."
      : `Asked \u201c${QUESTION}\u201d, the model answers: ${given}.${but}`;
    return `Canvas ${canvas.join(" x ")}, on it the picture has ${shown.join(" x ")} pixels. ${told} ${doing || asked}`;
  });

  update();
});
