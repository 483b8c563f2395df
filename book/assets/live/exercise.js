"use strict";
// Exercises whose answer is a number, a word, a choice or some code are checked in the page too.
//
//     <div class="mllama-exercise" data-chapter="attention" data-exercise="cache-bytes">
//     <p>What to answer.</p></div>
//
// With a list in it, one of its items is chosen; without, the answer is typed. The chapter's script,
// exercises/attention.js, says what is right:
//
//     mllama.exercise("cache-bytes", answer => expect(answer === 2 * layers * ..., "what is missing?"));
//
// What is typed is handed over as a number where it is one ("1/6" and "320 * 4" are), else as text; a
// choice as its letter: "a" is the first. Where `data-code` stands in it, code is written: see code.js.
(() => {
  const { el } = mllama;
  const checks = {}, NOT_ANSWERED = Symbol("not answered");

  // What is not so about an answer, in a sentence that does not give it away.
  class NotYet extends Error {
    get sentence() { return this.message; }
  }

  // Go on if something holds; otherwise the answer is not right yet, and this is why.
  function expect(holds, otherwise) {
    if (!holds) throw new NotYet(otherwise);
  }

  // "right", or "not yet: …", as the notebook's check says it.
  function checkAnswer(label, answer) {
    try {
      checks[label](answer);
    } catch (why) {
      if (why === NOT_ANSWERED) return "not answered yet";
      if (!why.sentence) throw why;
      return `not yet: ${why.sentence}`;
    }
    return "right";
  }

  // A number, or a product, quotient, sum or power of numbers; else the text itself.
  function numberOf(text) {
    const plain = text.trim().replace(/(\d)[,_](?=\d{3})/g, "$1");
    if (!/^[\d\s.()+\-*/e]+$/.test(plain)) return text.trim();
    try {
      const value = Function(`"use strict"; return (${plain});`)();
      return Number.isFinite(value) ? value : text.trim();
    } catch {
      return text.trim();
    }
  }

  function mountExercise(root, number) {
    const label = root.dataset.exercise, name = `exercise-${number}`;
    const said = el("p", { className: "exercise-said" });
    said.setAttribute("aria-live", "polite");
    const tell = answer => { said.textContent = answer === "" ? "not answered yet" : checkAnswer(label, answer); };
    const list = root.querySelector("ul");
    const button = onclick => el("button", { type: "button", onclick }, "Check");
    if (list) {
      const options = [...list.querySelectorAll("li")].map((li, i) => el("label", {},
        el("input", { type: "radio", name, value: "abcdef"[i] }), " ", ...li.childNodes));
      list.replaceWith(
        el("div", { className: "predict-options", role: "radiogroup", "aria-label": "Your answer" }, ...options),
        el("div", { className: "predict-buttons" }, button(() => {
          const chosen = root.querySelector("input:checked");
          tell(chosen ? chosen.value : "");
        })), said);
      return;
    }
    const input = el("input", { type: "text", autocomplete: "off", spellcheck: false });
    input.setAttribute("aria-label", "Your answer");
    const form = el("form", { className: "predict-buttons", onsubmit: event => {
      event.preventDefault();
      tell(numberOf(input.value));
    } }, input, el("button", { type: "submit" }, "Check"));
    root.append(form, said);
  }

  const exercise = (label, check) => { checks[label] = check; };

  Object.assign(mllama, { exercise, expect, NOT_ANSWERED, checkAnswer, numberOf, mountExercise });
})();
