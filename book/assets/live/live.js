"use strict";
// The page around the model: a picture, a question, the answer as it is written, where each of
// its tokens was looked up, and switches that change the model.
(() => {
  const { COLOURS, SHAPES, SIDE, SWITCHES, change, drawLook, el, fitted, gates, generate, loadIndex,
    loadOnce, lookInWords, painted, pause, pixelsAreTrue, pixelsOf, showPaper, toTiles, watch } = mllama;

  const PICTURES = {
    digits: "Three digits in a row", mixed: "Digits and shapes", one: "A single digit",
    tall: "A tall picture",
  };
  const QUESTIONS = [
    "What is in the picture?", "Read the digits from left to right.", "Which digit is red?",
    "How many digits are there?", "What colour is the 4?", "Where is the star?",
    "Is there a 7?", "What is left of the red 4?", "Which digit is this?",
  ];
  const START = { picture: "digits", marks: [], question: QUESTIONS[0], changes: {} };

  // The state of the page in its address: what a link carries.
  function toHash({ picture, marks, question, changes }) {
    const short = { ...(picture === "own" ? {} : { picture }), question };
    if (picture === "paper") short.marks = JSON.stringify(marks);
    if (Object.keys(changes).length) short.changes = JSON.stringify(changes);
    return new URLSearchParams(short).toString();
  }

  function fromHash(hash) {
    const given = Object.fromEntries(new URLSearchParams(hash.replace(/^#/, "")));
    const state = structuredClone(START);
    try {
      if (given.picture in PICTURES || given.picture === "paper") state.picture = given.picture;
      if (given.question) state.question = given.question;
      if (given.marks) state.marks = checkedMarks(JSON.parse(given.marks));
      if (given.changes) state.changes = checkedChanges(JSON.parse(given.changes));
    } catch { /* a link that was cut off: what could be read is kept */ }
    return state;
  }

  const isPoint = p => Array.isArray(p) && p.length === 2 && p.every(Number.isFinite);

  function checkedMarks(marks) {
    return marks.filter(({ colour, points, shape, at, size }) => colour in COLOURS && (points
      ? Array.isArray(points) && points.length && points.every(isPoint)
      : SHAPES.includes(shape) && isPoint(at) && size > 0));
  }

  function checkedChanges(given) {
    const changes = {};
    for (const name of Object.keys(SWITCHES)) if (given[name] === true) changes[name] = true;
    if (Array.isArray(given.drop)) changes.drop = given.drop.filter(Number.isInteger);
    if (["wrong", "blank"].includes(given.shown)) changes.shown = given.shown;
    if (given.gates) changes.gates = Object.fromEntries(
      Object.entries(given.gates).filter(([, v]) => v >= -1 && v <= 1));
    return changes;
  }

  class Live {
    constructor(root, fetchPacked) {
      this.root = root;
      root.live = this;  // for the console, and for measuring drawings
      this.fetchPacked = fetchPacked;
      this.whole = !root.hasAttribute("data-brief");
      this.state = this.whole ? fromHash(location.hash) : structuredClone(START);
      this.images = {};
      this.tokens = [];
      this.colour = "blue";
      this.tool = "pen";
      this.build();
    }

    // ---- The page -----------------------------------------------------------------------

    build() {
      const { root, state } = this;
      const choice = (value, text) => el("label", {}, el("input", {
        type: "radio", name: "live-picture", value, checked: state.picture === value,
        onchange: () => this.choose(value),
      }), ` ${text}`);
      this.choices = el("fieldset", { className: "live-row" }, el("legend", {}, "Picture"),
        ...Object.entries(PICTURES).map(([name, text]) => choice(name, text)),
        choice("paper", "Paper to draw on"), this.whole ? choice("own", "Your own") : "");
      this.file = el("input", {
        type: "file", accept: "image/*", "data-live": "picture", "aria-label": "Your own picture",
        onchange: () => this.upload(),
      });
      this.canvas = el("canvas", { className: "live-picture", tabIndex: 0, width: 336, height: 336 });
      this.canvas.setAttribute("role", "img");
      this.tools = this.buildTools();
      this.question = el("input", {
        type: "text", value: state.question, "data-live": "question", list: "live-questions",
        "aria-label": "Question", autocomplete: "off", maxLength: 500,
        oninput: () => { state.question = this.question.value; this.remember(); },
        onkeydown: event => { if (event.key === "Enter") this.ask(); },
      });
      const suggestions = el("datalist", { id: "live-questions" },
        ...QUESTIONS.map(value => el("option", { value })));
      this.button = el("button", { type: "button", "data-live": "ask", onclick: () => this.ask() }, "Ask");
      this.answer = el("output", { className: "live-answer", "data-live": "answer" });
      this.answer.setAttribute("aria-live", "polite");
      this.unchanged = el("p", { className: "live-note", hidden: true, "data-live": "unchanged" });
      this.progress = el("progress", { max: 1, value: 0, hidden: true, "aria-label": "Loading the model" });
      this.status = el("span", {});
      this.speed = el("span", { "data-live": "tokens-per-second" });
      this.looks = el("div", { className: "live-looks", hidden: true });
      root.replaceChildren(
        this.choices, this.file, el("div", { className: "live-paper" }, this.canvas, this.tools),
        el("div", { className: "live-row live-ask" }, this.question, suggestions, this.button),
        this.answer, this.unchanged,
        el("p", { className: "live-note" }, this.progress, this.status, " ", this.speed), this.looks);
      if (this.whole) root.append(this.switches = this.buildSwitches());
      if (!pixelsAreTrue()) this.say(
        "This browser falsifies the pixels that a page reads, as a guard against recognition: the "
        + "answers will be wrong. Allow canvas reading for this page.");
      this.drawOnCanvas();
      this.choose(state.picture);
      if (this.whole) addEventListener("hashchange", () => this.restore());
    }

    buildTools() {
      const colour = el("select", { "aria-label": "Colour", onchange: () => { this.colour = colour.value; } },
        ...Object.keys(COLOURS).map(name => el("option", { selected: name === this.colour }, name)));
      const tool = el("select", { "aria-label": "Tool", onchange: () => { this.tool = tool.value; } },
        ...["pen", ...SHAPES].map(name => el("option", {}, name)));
      const undo = () => { this.state.marks.pop(); this.marksChanged(); };
      const clear = () => { this.state.marks = []; this.marksChanged(); };
      return el("div", { className: "live-tools" }, tool, colour,
        el("button", { type: "button", onclick: undo }, "Undo"),
        el("button", { type: "button", onclick: clear }, "Clear"),
        el("p", { className: "live-note" }, "Draw with a pointer; or focus the paper, move with the "
          + "arrow keys, and press space to put the pen down, to lift it, or to stamp."));
    }

    buildSwitches() {
      const box = (label, checked, set) => el("label", {}, el("input", {
        type: "checkbox", checked, onchange: event => { set(event.target.checked); this.changed(); },
      }), ` ${label}`);
      const { changes } = this.state;
      const set = (name, value) => {
        if (value) changes[name] = value;
        else delete changes[name];
      };
      const shown = el("select", { onchange: () => { set("shown", shown.value); this.changed(); } },
        ...[["", "the picture above"], ["wrong", "another picture"], ["blank", "blank paper"]]
          .map(([value, text]) => el("option", { value, selected: (changes.shown ?? "") === value }, text)));
      const drop = index => box(`${index}`, (changes.drop ?? []).includes(index), on => {
        const dropped = (changes.drop ?? []).filter(i => i !== index);
        const all = on ? [...dropped, index].sort() : dropped;
        set("drop", all.length ? all : null);
      });
      this.gateRow = el("div", {}, el("p", { className: "live-note" }, "The gates appear once the model is loaded."));
      return el("details", { className: "live-switches", open: Object.keys(changes).length > 0 },
        el("summary", {}, "Change the model"),
        el("p", {}, el("label", {}, "The model is shown ", shown)),
        el("fieldset", {}, el("legend", {}, "Take layers out (1, 3 and 5 look at the picture)"),
          el("div", { className: "live-row" }, ...[0, 1, 2, 3, 4, 5, 6].map(drop))),
        el("fieldset", {}, el("legend", {}, "Gates of cross-attention (tanh)"), this.gateRow),
        el("fieldset", {}, el("legend", {}, "Mistakes that people make"),
          ...Object.entries(SWITCHES).map(([name, { label }]) =>
            el("p", {}, box(label, changes[name], on => set(name, on))))),
        el("button", { type: "button", onclick: () => this.undoAll() }, "Undo all changes"));
    }

    buildGates() {
      if (!this.whole) return;
      const { changes } = this.state;
      this.gateRow.replaceChildren(...this.engine.gates.map(gate => {
        const value = changes.gates?.[gate.name] ?? Math.tanh(gate.trained);
        const number = el("span", { className: "live-note" }, value.toFixed(2));
        const slider = el("input", {
          type: "range", min: -1, max: 1, step: 0.01, value, "data-gate": gate.name,
          oninput: () => {
            (changes.gates ??= {})[gate.name] = Number(slider.value);
            number.textContent = Number(slider.value).toFixed(2);
          },
          onchange: () => this.changed(),
        });
        return el("label", { className: "live-gate" }, gate.label, slider, number);
      }));
    }

    say(text) {
      this.status.textContent = text;
    }

    remember() {
      if (this.whole) history.replaceState(null, "", `#${toHash(this.state)}`);
    }

    restore() {  // the address was changed by hand, or a link to this page was followed
      if (location.hash.slice(1) === toHash(this.state)) return;
      this.state = fromHash(location.hash);
      this.build();
      if (this.engine) this.buildGates();
    }

    // ---- The picture --------------------------------------------------------------------

    async choose(name) {
      const { state } = this;
      state.picture = name;
      for (const input of this.choices.querySelectorAll("input")) input.checked = input.value === name;
      this.file.hidden = name !== "own";
      this.tools.hidden = name !== "paper";
      this.canvas.style.touchAction = name === "paper" ? "none" : "auto";
      this.canvas.tabIndex = name === "paper" ? 0 : -1;
      this.forget();
      await this.show();
      this.remember();
    }

    async upload() {
      const file = this.file.files[0];
      if (!file) return;
      try {
        const image = await createImageBitmap(file);
        if (image.width * image.height > 2 ** 26) throw new Error("too large");
        this.images.own = image;
      } catch {
        return this.say(`${file.name} cannot be read here: expected a picture (PNG, JPEG, WebP, GIF) of at `
          + "most 67 million pixels; convert it.");
      }
      this.say("");
      await this.choose("own");
    }

    async image(name) {
      const { pictures } = await loadIndex(this.fetchPacked);
      if (this.images[name]) return this.images[name];
      const image = new Image();
      image.src = pictures[name];
      await image.decode();
      return (this.images[name] = image);
    }

    async source() {  // what is asked about, or null while there is none
      const { picture, marks } = this.state;
      if (picture === "paper") return fitted(marks);
      return picture === "own" ? this.images.own ?? null : this.image(picture);
    }

    async show() {
      const { canvas, state } = this;
      if (state.picture === "paper") {
        canvas.setAttribute("aria-label", `Paper to draw on, ${state.marks.length} marks`);
        return showPaper(canvas, state.marks, 336, document.activeElement === canvas ? this.cursor : null);
      }
      const source = await this.source();
      canvas.setAttribute("aria-label", source ? `The picture: ${PICTURES[state.picture] ?? "your own"}` : "No picture yet");
      const width = source?.naturalWidth || source?.width || 56, height = source?.naturalHeight || source?.height || 56;
      const zoom = Math.min(336 / width, 336 / height);
      [canvas.width, canvas.height] = [Math.max(1, Math.round(width * zoom)), Math.max(1, Math.round(height * zoom))];
      const g = canvas.getContext("2d");
      g.fillStyle = "white";
      g.fillRect(0, 0, canvas.width, canvas.height);
      g.imageSmoothingEnabled = zoom < 1;
      if (source) g.drawImage(source, 0, 0, canvas.width, canvas.height);
    }

    marksChanged() {
      this.forget();
      this.show();
      this.remember();
    }

    drawOnCanvas() {
      const { canvas } = this, round = v => Math.round(2 * v) / 2;
      const inside = v => Math.min(Math.max(v, 0), SIDE);
      const at = event => {
        const box = canvas.getBoundingClientRect();
        return [event.clientX - box.left, event.clientY - box.top].map((v, i) =>
          round(inside(v / [box.width, box.height][i] * SIDE)));
      };
      let stroke = null;
      this.cursor = [SIDE / 2, SIDE / 2];
      const begin = point => {
        const { state, tool, colour } = this;
        if (tool === "pen") state.marks.push(stroke = { colour, points: [point] });
        else state.marks.push({ colour, shape: tool, at: point, size: 28 });
        this.marksChanged();
      };
      canvas.onpointerdown = event => {
        if (this.state.picture !== "paper" || event.button) return;
        canvas.setPointerCapture(event.pointerId);
        begin(at(event));
      };
      canvas.onpointermove = event => {
        if (!stroke || !event.buttons) return;
        stroke.points.push(at(event));
        this.show();
      };
      canvas.onpointerup = canvas.onpointercancel = () => {
        stroke = null;
        this.remember();
      };
      canvas.onkeydown = event => {
        if (this.state.picture !== "paper") return;
        const moves = { ArrowLeft: [-2, 0], ArrowRight: [2, 0], ArrowUp: [0, -2], ArrowDown: [0, 2] };
        if (event.key in moves) {
          this.cursor = this.cursor.map((v, i) => inside(v + moves[event.key][i]));
          if (stroke) stroke.points.push([...this.cursor]);
        } else if (event.key !== " ") return;
        else if (stroke) stroke = null;
        else begin([...this.cursor]);
        event.preventDefault();
        this.marksChanged();
      };
      canvas.onfocus = canvas.onblur = () => { if (this.state.picture === "paper") this.show(); };
    }

    // ---- The model ----------------------------------------------------------------------

    async ready() {
      if (this.engine) return;
      this.say("Loading the model, 5 MB …");
      this.progress.hidden = false;
      let loaded;
      try {
        loaded = await loadOnce(this.fetchPacked, share => { this.progress.value = share; });
      } finally {
        this.progress.hidden = true;
      }
      this.engine = { ...loaded, gates: gates(loaded.model), encoded: new Map() };
      this.buildGates();
    }

    // The picture that the model is shown: another one, or none, if a switch says so.
    async shown(source, { shown }) {
      if (!shown) return source;
      if (shown === "wrong") return this.image(this.state.picture === "mixed" ? "digits" : "mixed");
      const width = source.naturalWidth || source.width, height = source.naturalHeight || source.height;
      const canvas = el("canvas", { width, height }), g = canvas.getContext("2d");
      g.fillStyle = "white";
      g.fillRect(0, 0, width, height);
      return canvas;
    }

    // Write an answer with the model as `changes` make it; told of every token as it comes.
    async write(source, question, changes, told) {
      const { model, tokenizer, gates: known, encoded } = this.engine;
      change(model, known, changes);
      const picture = await this.shown(source, changes), begin = performance.now();
      const tiles = toTiles(pixelsOf(picture), model.config.vision.image_size, changes.stretched);
      const key = [tiles.pixelValues.reduce((sum, v, i) => sum + v * (1 + i % 8191), 0),
        tiles.canvas, changes.late, changes.masked].join();
      if (!encoded.has(key)) {
        encoded.clear();
        encoded.set(key, model.encodeImage(tiles));
      }
      const prompt = tokenizer.encodeChat([{ role: "user", content: [null, question] }]);
      const decode = tokenizer.decoder(), watched = watch(model);
      let first = 0, stepping = 0, steps = 0, last = performance.now();
      try {
        for (const { id } of generate(model, prompt, [encoded.get(key)], { stopIds: tokenizer.stopIds, maxNewTokens: 64 })) {
          const now = performance.now();
          if (!first) first = now - begin;
          else [stepping, steps] = [stepping + now - last, steps + 1];
          const piece = decode(id);
          if (!tokenizer.stopIds.has(id)) told({ piece, looks: watched.latest(), tiles, picture });
          await pause();
          last = performance.now();
        }
      } finally {
        watched.stop();
      }
      return { first, perSecond: steps ? 1000 * steps / stepping : 0 };
    }

    async ask() {
      const question = this.state.question.trim(), { changes } = this.state;
      if (!question) return this.say("The question is empty: expected some text; write what you want to know.");
      if (this.busy) return;
      this.busy = true;
      this.stale = false;
      this.forget();
      this.answer.setAttribute("aria-busy", "true");
      this.button.disabled = true;
      try {
        const source = await this.source();
        if (!source) return this.say("There is no picture yet: expected a file; choose one.");
        await this.ready();
        this.say("Looking …");
        await painted();
        const { first, perSecond } = await this.write(source, question, changes, token => this.add(token));
        if (!this.tokens.length) this.answer.textContent = "(nothing)";
        this.say(`First token after ${Math.round(first)} ms.`);
        this.speed.textContent = perSecond ? `${Math.round(perSecond)} tokens a second` : "";
        if (Object.keys(changes).length) await this.compare(source, question);
      } catch (error) {
        this.say(String(error.message ?? error));
        throw error;
      } finally {
        this.busy = false;
        this.answer.removeAttribute("aria-busy");
        this.button.disabled = false;
        this.remember();
        if (this.stale) this.ask();
      }
    }

    async compare(source, question) {  // what the model says without the changes
      let text = "";
      await this.write(source, question, {}, ({ piece }) => { text += piece; });
      this.unchanged.textContent = `Without the changes: ${text || "(nothing)"}`;
      this.unchanged.hidden = false;
    }

    // A switch was moved: ask again if there is an answer, or once the one that is written is.
    async changed() {
      this.remember();
      if (this.busy) this.stale = true;
      else if (this.tokens.length) await this.ask();
    }

    undoAll() {
      const { changes } = this.state;
      for (const name of Object.keys(changes)) delete changes[name];
      const again = this.busy || this.tokens.length > 0, fresh = this.buildSwitches();
      fresh.open = true;
      this.switches.replaceWith(fresh);
      this.switches = fresh;
      if (this.engine) this.buildGates();
      if (again) this.changed();
      else this.remember();
    }

    // ---- The answer ---------------------------------------------------------------------

    forget() {
      this.tokens = [];
      this.answer.replaceChildren();
      this.unchanged.hidden = true;
      this.speed.textContent = "";
      this.looks.hidden = true;
    }

    add(token) {
      const number = this.tokens.push(token) - 1;
      const look = () => this.look(number);
      this.answer.append(el("button", {
        type: "button", className: "live-token", onclick: look, onfocus: look, onpointerenter: look,
      }, token.piece));
      this.look(number);
    }

    // Draw where a token was looked up: a row for each layer, all heads together and each alone.
    look(number) {
      const { piece, looks, tiles, picture } = this.tokens[number], { model } = this.engine;
      [...this.answer.children].forEach((button, i) =>
        button.setAttribute("aria-current", i === number ? "true" : "false"));
      const heads = model.config.text.num_attention_heads;
      const rows = Object.entries(looks).map(([layer, weights]) => {
        const panels = [null, ...Array(heads).keys()].map(head => {
          const canvas = el("canvas"), columns = tiles.canvas[1] * model.vision_model.side;
          const map = drawLook(canvas, picture, tiles, weights, model.config, head, 96);
          const name = head === null ? "all heads" : `head ${head}`;
          canvas.setAttribute("role", "img");
          canvas.setAttribute("aria-label", `Layer ${layer}, ${name}: ${lookInWords(map, columns)}`);
          return el("figure", {}, canvas, el("figcaption", {}, name));
        });
        return el("div", {}, el("strong", {}, `Layer ${layer}`), el("div", { className: "live-heads" }, ...panels));
      });
      const title = el("p", {}, "Where \u201c", el("strong", {}, piece.trim() || "(space)"),
        "\u201d was looked up: orange is attention, full orange the most that a patch of the panel got. "
        + "White lines part the tiles; dark grey is the padding around the picture.");
      this.looks.replaceChildren(title, ...(rows.length ? rows : ["No layer looked at the picture."]));
      this.looks.hidden = false;
    }
  }

  Object.assign(mllama, { mountLive: (root, fetchPacked) => new Live(root, fetchPacked) });
})();
