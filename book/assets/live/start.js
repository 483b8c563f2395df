"use strict";
// The one script that a page names. It loads the others, in this order: the engine, a chapter
// after the other, then what the page shows. The weights come when they are first needed.
const mllamaScripts = {
  engine: [
    "arithmetic", "tokenizer", "rope", "attention", "decoder", "tiles", "local_vision",
    "global_vision", "cross_attention", "model", "generation", "attention_maps", "load",
  ],
  page: ["page", "switches", "paper", "looks", "live", "figure", "predict", "exercise", "code"],
  // Where code is to be checked: a small part of Python.
  code: ["python_parse", "python_arrays", "python_numbers", "python_values", "python_run", "code_check"],
};

if (typeof document === "object") {
  const folder = document.currentScript.src.replace(/[^/]*$/, "");
  const fetchScript = name => new Promise((done, fail) => {
    const script = document.createElement("script");
    script.src = folder + name;
    script.onload = done;
    script.onerror = () => fail(new Error(`${name} cannot be loaded: expected it beside the page.`));
    document.head.append(script);
  });
  (async () => {
    for (const name of ["live", "figure"]) {
      const style = document.createElement("link");
      style.rel = "stylesheet";
      style.href = `${folder}${name}.css`;
      document.head.append(style);
    }
    for (const name of [...mllamaScripts.engine, ...mllamaScripts.page]) await fetchScript(`${name}.js`);
    const fetchPacked = name => fetchScript(`packed/${name}`);
    for (const root of document.querySelectorAll(".mllama-live")) mllama.mountLive(root, fetchPacked);
    document.querySelectorAll(".mllama-predict").forEach(mllama.mountPredict);
    const exercises = [...document.querySelectorAll(".mllama-exercise")];
    const isCode = root => "code" in root.dataset;
    const chapters = roots => new Set(roots.map(root => root.dataset.chapter));
    for (const chapter of chapters(exercises.filter(root => !isCode(root))))
      await fetchScript(`exercises/${chapter}.js`);
    let checks = null;  // of code
    const fetchChecks = async () => {
      for (const name of mllamaScripts.code) await fetchScript(`${name}.js`);
      for (const chapter of chapters(exercises.filter(isCode))) await fetchScript(`exercises/${chapter}_code.js`);
    };
    exercises.forEach((root, number) => {
      if (isCode(root)) mllama.mountCode(root, () => checks ??= fetchChecks());
      else mllama.mountExercise(root, number);
    });
    for (const root of document.querySelectorAll(".mllama-figure")) {
      await fetchScript(`figures/${root.dataset.figure}.js`);
      mllama.mountFigure(root, fetchPacked);
    }
  })();
}
