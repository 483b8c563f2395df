"use strict";
// What the live model and the figures need of a browser: elements, turns, pixels.
(() => {
  // el("button", { type: "button", onclick }, "Ask"): an element with properties and children.
  function el(tag, properties = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name in element && name !== "list") element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children);
    return element;
  }

  // A turn of the event loop, so that the page can show what was said.
  const pause = () => new Promise(done => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => { port1.close(); done(); };
    port2.postMessage(0);
  });
  const painted = () => new Promise(done => setTimeout(done, 30));

  // Pixels of an image as a viewer shows it, on white: { rgb, height, width }.
  function pixelsOf(source) {
    const width = source.naturalWidth || source.width, height = source.naturalHeight || source.height;
    const canvas = el("canvas", { width, height });
    const g = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
    g.fillStyle = "white";
    g.fillRect(0, 0, width, height);
    g.drawImage(source, 0, 0);
    const { data } = g.getImageData(0, 0, width, height), rgb = new Uint8Array(3 * width * height);
    for (let i = 0, n = 0; i < data.length; i += 4) for (let c = 0; c < 3; c++) rgb[n++] = data[i + c];
    return { rgb, height, width };
  }

  // Some browsers give false pixels, so that nobody is recognised by them.
  function pixelsAreTrue() {
    const canvas = el("canvas", { width: 8, height: 8 }), g = canvas.getContext("2d");
    g.fillStyle = "rgb(12, 200, 77)";
    g.fillRect(0, 0, 8, 8);
    const { data } = g.getImageData(0, 0, 8, 8);
    return data.every((value, i) => value === [12, 200, 77, 255][i % 4]);
  }

  Object.assign(mllama, { el, pause, painted, pixelsOf, pixelsAreTrue });
})();
