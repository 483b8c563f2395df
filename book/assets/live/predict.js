"use strict";
// Predict first: the reader commits to an answer before a result is shown.
//
//     <div class="mllama-predict"><p>What happens to …?</p><ul><li>It halves.</li><li>It stays.</li></ul></div>
//
// The code cells that follow, and the prose up to the next cell or heading, wait for the reader. Nothing
// says what is right but the result itself. Without scripts, and in print, nothing is hidden.
(() => {
  const { el } = mllama;

  // What waits: the next code cell and those that follow it at once, and the prose after them, up
  // to the next cell or section.
  function waiting(root) {
    const found = [];
    let cells = false, prose = false;  // whether there were cells, and prose after them
    for (let next = root.nextElementSibling; next; next = next.nextElementSibling) {
      const isCell = next.classList.contains("cell");
      if (next.matches("section, .mllama-predict") || (isCell && prose)) break;
      cells ||= isCell;
      prose = cells && !isCell;
      found.push(next);
    }
    return cells ? found : [];
  }

  function mountPredict(root, number) {
    const hidden = waiting(root), name = `predict-${number}`;
    const options = [...root.querySelectorAll("li")].map(li => el("label", {},
      el("input", { type: "radio", name }), " ", ...li.childNodes));
    const said = el("p", { className: "predict-said", hidden: true });
    said.setAttribute("aria-live", "polite");
    const show = text => {
      said.textContent = text;
      said.hidden = false;
      for (const input of root.querySelectorAll("input, button")) input.disabled = true;
      for (const element of hidden) element.classList.remove("predict-waits");
    };
    const commit = el("button", { type: "button", onclick: () => {
      const chosen = root.querySelector("input:checked");
      if (!chosen) return commit.focus();
      show(`You said: ${chosen.parentElement.textContent.trim()} Now look.`);
    } }, "This is what I expect");
    const skip = el("button", { type: "button", className: "predict-skip", onclick: () =>
      show("Not asked. Here is what happens.") }, "Just show me");
    root.querySelector("ul").replaceWith(
      el("div", { className: "predict-options", role: "radiogroup", "aria-label": "What do you expect?" }, ...options),
      el("div", { className: "predict-buttons" }, commit, skip), said);
    for (const element of hidden) element.classList.add("predict-waits");
  }

  Object.assign(mllama, { mountPredict });
})();
