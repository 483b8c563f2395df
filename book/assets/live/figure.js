"use strict";
// What all figures that move share: controls, a drawing in SVG, and what is shown in words.
//
// A page has <div class="mllama-figure" data-figure="rope_clock">…</div>, whose content, a still
// picture and a text, stands where scripts are off. figures/rope_clock.js says
//
//     mllama.figure("rope_clock", figure => {
//       const place = figure.slider({ label: "Position", min: 0, max: 50, value: 7 });
//       figure.drawing({ width: 400, height: 200 }, svg => { svg.line(0, 0, place.value, 10); });
//       figure.words(() => `At position ${place.value}.`);
//     });
//
// Every control redraws the figure. Sizes are in units of the drawing; drawings of up to 320 units
// stand beside each other as there is room, and their text can be read on a phone.
(() => {
  const { el } = mllama, SVG = "http://www.w3.org/2000/svg";
  const figures = {};

  // Colours that differ for colour-blind readers too, on light and on dark (figure.css).
  const INKS = ["ink", "blue", "orange", "green", "purple", "grey"];

  class Drawing {
    constructor(figure, { width, height }, draw) {
      Object.assign(this, { figure, width, height, draw });
      this.svg = document.createElementNS(SVG, "svg");
      this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.svg.setAttribute("role", "img");
      this.svg.style.maxWidth = `${1.25 * width}px`;
      this.svg.style.flexBasis = `${Math.min(width, 320)}px`;
    }

    redraw() {
      this.svg.replaceChildren();
      this.draw(this);
    }

    // Any element: attributes as SVG names them; `ink` and `fill` are names of INKS.
    add(tag, { ink, fill, text, ...attributes }) {
      const element = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      if (ink) element.classList.add(`stroke-${ink}`);
      if (fill) element.classList.add(`fill-${fill}`);
      if (text !== undefined) element.textContent = text;
      this.svg.append(element);
      return element;
    }

    line(x1, y1, x2, y2, { ink = "ink", width = 1.5, ...more } = {}) {
      return this.add("line", { x1, y1, x2, y2, ink, "stroke-width": width, ...more });
    }

    circle(cx, cy, r, { ink = null, fill = null, ...more } = {}) {
      return this.add("circle", { cx, cy, r, ink, fill: fill ?? "none", ...more });
    }

    rect(x, y, width, height, { ink = null, fill = null, ...more } = {}) {
      return this.add("rect", { x, y, width, height, ink, fill: fill ?? "none", ...more });
    }

    // points: [[x, y], ...]
    path(points, { ink = "ink", width = 2, ...more } = {}) {
      const d = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)} ${y.toFixed(2)}`).join("");
      return this.add("path", { d, ink, fill: "none", "stroke-width": width, ...more });
    }

    text(x, y, text, { size = 13, anchor = "start", fill = "ink", ...more } = {}) {
      return this.add("text", { x, y, text, fill, "font-size": size, "text-anchor": anchor, ...more });
    }

    // Let an element be dragged; moved(x, y) gets the pointer's place in units of the drawing. A
    // control has to do the same for the keyboard. The elements are redrawn, so the whole drawing
    // listens, and the element that was caught is asked for its `data-drag`.
    onDrag(moved) {
      const at = event => {
        const box = this.svg.getBoundingClientRect();
        return [(event.clientX - box.left) * this.width / box.width,
          (event.clientY - box.top) * this.height / box.height];
      };
      let caught = null;
      this.svg.addEventListener("pointerdown", event => {
        caught = event.target.closest("[data-drag]")?.dataset.drag ?? null;
        if (caught === null) return;
        this.svg.setPointerCapture(event.pointerId);
        event.preventDefault();
      });
      this.svg.addEventListener("pointermove", event => {
        if (caught !== null) moved(caught, ...at(event));
      });
      for (const end of ["pointerup", "pointercancel"])
        this.svg.addEventListener(end, () => { caught = null; });
    }
  }

  class Figure {
    constructor(root, fetchPacked) {
      this.root = root;
      this.fetchPacked = fetchPacked;
      this.controls = el("div", { className: "figure-controls" });
      this.panels = el("div", { className: "figure-panels" });
      this.caption = el("p", { className: "figure-words" });
      this.caption.setAttribute("aria-live", "polite");
      this.drawings = [];
      this.tell = () => "";
    }

    control(label, input, read, shown = null) {
      const box = el("label", {}, el("span", {}, label), input, ...(shown ? [shown] : []));
      input.setAttribute("aria-label", label);  // without what stands beside it
      input.addEventListener("input", () => this.redraw());
      this.controls.append(box);
      return Object.defineProperty({ input, box }, "value", {
        get: () => read(input),
        set: value => {
          if (input.type === "checkbox") input.checked = value;
          else input.value = value;
          input.dispatchEvent(new Event("input"));
        },
      });
    }

    // format(value) is what stands beside the slider and what a screen reader says.
    slider({ label, min, max, step = 1, value, format = String }) {
      const input = el("input", { type: "range", min, max, step, value }), shown = el("output", {});
      const show = () => {
        shown.textContent = format(Number(input.value));
        input.setAttribute("aria-valuetext", shown.textContent);
      };
      input.addEventListener("input", show);
      show();
      return this.control(label, input, i => Number(i.value), shown);
    }

    toggle({ label, value = false }) {
      return this.control(label, el("input", { type: "checkbox", checked: value }), i => i.checked);
    }

    choice({ label, options, value = options[0] }) {  // options: texts
      const select = el("select", {}, ...options.map(text =>
        el("option", { value: text, selected: text === value }, text)));
      return this.control(label, select, i => i.value);
    }

    typed({ label, value = "" }) {
      const input = el("input", { type: "text", value, autocomplete: "off", spellcheck: false });
      return this.control(label, input, i => i.value);
    }

    button({ label, press }) {
      const button = el("button", { type: "button", onclick: async () => {
        await press();
        this.redraw();
      } }, label);
      this.controls.append(button);
      return button;
    }

    drawing(size, draw) {
      const drawing = new Drawing(this, size, draw);
      this.drawings.push(drawing);
      this.panels.append(drawing.svg);
      return drawing;
    }

    // Any element of one's own, such as a canvas or a table, with what redraws it.
    panel(element, redraw) {
      this.drawings.push({ svg: element, redraw });
      this.panels.append(element);
      return element;
    }

    // What the figure shows now as numbers, for the tests that compare it with the package.
    values(read) {
      this.numbers = read;
    }

    // What the figure shows now, in words: read by everyone, and the drawings' description.
    words(tell) {
      this.tell = tell;
    }

    // What is packed beside its weights: { config, tokenizer, pictures, ... }.
    packed() {
      return mllama.loadIndex(this.fetchPacked);
    }

    // The trained model, { model, tokenizer, config }; it is loaded once a page.
    async model() {
      const progress = el("progress", { max: 1, value: 0, "aria-label": "Loading the model" });
      this.controls.append(progress);
      try {
        return await mllama.loadOnce(this.fetchPacked, share => { progress.value = share; });
      } finally {
        progress.remove();
      }
    }

    redraw() {
      for (const drawing of this.drawings) drawing.redraw();
      const text = this.tell();
      if (this.caption.textContent !== text) this.caption.textContent = text;
      for (const { svg } of this.drawings)
        if (svg.getAttribute("role") === "img") svg.setAttribute("aria-label", text);
    }

    show() {
      this.root.replaceChildren(this.controls, this.panels, this.caption);
      this.redraw();
      this.root.dataset.ready = "";
    }
  }

  const figure = (name, build) => { figures[name] = build; };

  function mountFigure(root, fetchPacked) {
    const figure = new Figure(root, fetchPacked);
    root.figure = figure;
    figures[root.dataset.figure](figure);
    figure.show();
  }

  Object.assign(mllama, { INKS, figure, mountFigure });
})();
