"use strict";
// A box for code in an exercise whose answer is a few lines of it.
//
//     <div class="mllama-exercise" data-code data-chapter="attention" data-exercise="one-head"><p>…</p></div>
//
// The code cell that follows in the page has the signature to begin with. What runs and checks it (python_*.js,
// code_check.js, the chapter's checks) is loaded when it is first asked for.
(() => {
  const { el } = mllama;

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
    const { python } = mllama, { np, math } = python.MODULES, names = list => [...list].sort().join(" ");
    const part = (what, list) => el("p", {}, `${what}: `, el("code", {}, names(list)));
    return [
      el("p", {}, "def, lambda, if, for, while, assignments, comprehensions, slices, lists, tuples, dicts, text."),
      part("Always there", python.ALWAYS), part("Of np and torch", np.keys()),
      part("Of an array", ["shape", "ndim", "T", ...Object.keys(python.METHODS)]), part("Of math", math.keys()),
    ];
  }

  // Type text where the cursor is, so that it can be undone.
  function type(area, text) {
    area.focus();
    if (document.execCommand?.("insertText", false, text)) return;
    area.setRangeText(text, area.selectionStart, area.selectionEnd, "end");
    area.dispatchEvent(new Event("input"));
  }

  function mountCode(root, load) {
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
    const tell = async () => {
      said.textContent = output.textContent = "";
      try {
        await load();
        said.textContent = mllama.checkAnswer(label, area.value);
        output.textContent = mllama.printed().split("\n").slice(0, 20).join("\n");
      } catch (error) {
        said.textContent = error.message;
      }
      output.hidden = !output.textContent;
    };
    const more = el("details", { className: "exercise-keys" }, el("summary", {}, "What the page knows of Python"));
    more.addEventListener("toggle", async () => {
      await load();
      more.append(...known());
    }, { once: true });
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
        button("Four spaces", () => type(area, "    ")), button("Start again", again)), note, said, output, more);
    grow();
  }

  Object.assign(mllama, { mountCode });
})();
