"use strict";
// Exercises whose answer is a few lines of code, written and checked in the page (python_run.js).
//
//     <div class="mllama-exercise" data-code data-chapter="attention" data-exercise="one-head"><p>…</p></div>
//
// The code cell that follows in the page has the signature to begin with. The chapter's script,
// exercises/attention.js, says what is tried:
//
//     mllama.codeExercise("one-head", ["one_head"], oneHead => { expect(..., "what is not so"); });
//
// What is asked for comes as functions of JavaScript, or as what it is. A check tries them on numbers that are
// drawn anew each time and compares with the page's engine or with a formula.
(() => {
  const { el, python, expect, exercise } = mllama, { NDArray } = python;
  let program = null;  // the code that was checked last

  // given: names that the notebook defines, for the code to use.
  function codeExercise(label, names, check, given = {}) {
    exercise(label, text => {
      program = null;
      program = python.run(text, given);
      const answered = value => {
        if (value === python.NOT_IMPLEMENTED || value === null) throw mllama.NOT_ANSWERED;
        return value;
      };
      check(...names.map(name => {
        expect(program.has(name), `nothing is called ${name}`);
        const value = program.get(name);
        return typeof value === "function" ? (...args) => answered(program.call(name, ...args)) : answered(value);
      }));
    });
  }

  // ---- For the checks ---------------------------------------------------------------------

  // An array of numbers, given or made one after the other by a function of their index.
  function tensor(shape, numbers, kind = "float") {
    const count = shape.reduce((a, b) => a * b, 1), make = typeof numbers === "function";
    return new NDArray(Float64Array.from({ length: count }, (_, i) => make ? numbers(i) : numbers[i]), shape, kind);
  }

  const draw = (from, to) => from + Math.floor((to - from) * Math.random());  // a whole number below `to`
  const gauss = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());
  const randn = (...shape) => tensor(shape, gauss);
  const sizes = shape => `[${shape.join(", ")}]`;

  // The numbers of an array that must have this shape; `what` begins the sentence.
  function numbersOf(value, shape, what) {
    expect(value instanceof NDArray, `${what} it returns a ${python.typeName(value)}, and no array`);
    expect(sizes(value.shape) === sizes(shape), `${what} it returns a shape of ${sizes(value.shape)}`);
    return value.numbers();
  }

  // The largest difference; infinite where one of them is no number.
  function apart(some, others) {
    let most = 0;
    some.forEach((number, i) => {
      const off = Math.abs(number - others[i]);
      most = Math.max(most, Number.isFinite(off) ? off : Infinity);
    });
    return most;
  }

  const few = number => Number(number.toPrecision(2)).toString();

  // x [T, I] times a weight [O, I] as nn.Linear keeps it: [T, O].
  function linear(x, weight, ins) {
    const outs = weight.length / ins;
    return Float64Array.from({ length: x.length / ins * outs }, (_, i) => {
      let sum = 0;
      for (let n = 0; n < ins; n++) sum += x[Math.floor(i / outs) * ins + n] * weight[i % outs * ins + n];
      return sum;
    });
  }

  // ---- The page ---------------------------------------------------------------------------

  // The cell below the exercise, without what checks it in a notebook.
  function starter(root) {
    const cell = root.nextElementSibling?.querySelector("pre");
    const text = cell?.textContent.replace(/^from exercises import check\n+/m, "").replace(/^check\([^]*/m, "") ?? "";
    return `${text.trim()}\n`;
  }

  // A storage that may be refused: then what is typed lasts as long as the page.
  const kept = {
    get: name => { try { return localStorage.getItem(name); } catch { return null; } },
    set: (name, text) => { try { localStorage.setItem(name, text); } catch { /* not kept */ } },
    remove: name => { try { localStorage.removeItem(name); } catch { /* was not kept */ } },
  };

  // What can be used, from the tables themselves.
  function known() {
    const { np, math } = python.MODULES, names = list => [...list].sort().join(" ");
    const part = (what, list) => el("p", {}, `${what}: `, el("code", {}, names(list)));
    return el("details", { className: "exercise-keys" }, el("summary", {}, "What the page knows of Python"),
      el("p", {}, "def, lambda, if, for, while, assignments, comprehensions, slices, lists, tuples, dicts, text."),
      part("Always there", python.ALWAYS), part("Of np and torch", np.keys()),
      part("Of an array", ["shape", "ndim", "T", ...Object.keys(python.METHODS)]), part("Of math", math.keys()));
  }

  // Type text where the cursor is, so that it can be undone.
  function type(area, text) {
    area.focus();
    if (document.execCommand?.("insertText", false, text)) return;
    area.setRangeText(text, area.selectionStart, area.selectionEnd, "end");
    area.dispatchEvent(new Event("input"));
  }

  function mountCode(root) {
    const label = root.dataset.exercise, name = `mllama-exercise-${label}`, first = starter(root);
    const area = el("textarea", {
      id: name, className: "exercise-code", value: kept.get(name) ?? first, spellcheck: false, wrap: "off",
      autocapitalize: "off", autocomplete: "off",
    });
    const keys = /Mac|iP(hone|ad)/.test(navigator.platform) ? "⌘ + Enter" : "Ctrl + Enter";
    const note = el("p", { id: `${name}-keys`, className: "exercise-keys" },
      `${keys} checks. Tab moves on; four spaces come with Enter after a colon, or from the button.`);
    area.setAttribute("aria-describedby", note.id);
    const said = el("p", { className: "exercise-said" });
    const output = el("pre", { className: "exercise-printed", hidden: true });
    said.setAttribute("aria-live", "polite");
    output.setAttribute("aria-label", "What the code printed");
    const grow = () => { area.rows = Math.min(24, Math.max(5, area.value.split("\n").length + 1)); };
    const tell = () => {
      said.textContent = mllama.checkAnswer(label, area.value);
      output.textContent = (program?.printed ?? "").split("\n").slice(0, 20).join("\n");
      output.hidden = !output.textContent;
    };
    area.addEventListener("input", () => {
      kept.set(name, area.value);
      grow();
    });
    area.addEventListener("keydown", event => {
      if (event.key !== "Enter" || event.isComposing || event.altKey || event.shiftKey) return;
      event.preventDefault();
      if (event.ctrlKey || event.metaKey) {
        tell();
        return;
      }
      const line = area.value.slice(0, area.selectionStart).split("\n").at(-1);
      type(area, `\n${line.match(/^ */)[0]}${/:\s*(#.*)?$/.test(line) ? "    " : ""}`);
    });
    const again = () => {
      kept.remove(name);
      area.value = first;
      said.textContent = "";
      output.hidden = true;
      grow();
      area.focus();
    };
    const button = (text, onclick) => el("button", { type: "button", onclick }, text);
    root.append(el("label", { htmlFor: name }, "Your code"), area,
      el("div", { className: "predict-buttons" }, button("Check", tell),
        button("Four spaces", () => type(area, "    ")), button("Start again", again)), note, said, output, known());
    grow();
  }

  Object.assign(mllama, { codeExercise, mountCode, tensor, draw, gauss, randn, numbersOf, apart, few, linear });
})();
