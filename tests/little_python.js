"use strict";
// Runs the page's small part of Python in Node: a line of JSON in, a line out.
// Started as: node little_python.js <folder of the page's scripts>
const fs = require("fs"), path = require("path"), readline = require("readline"), vm = require("vm");

const folder = process.argv[2];
const run = name => vm.runInThisContext(fs.readFileSync(path.join(folder, `${name}.js`), "utf8"), { filename: name });
run("start");
[...mllamaScripts.engine, "exercise", ...mllamaScripts.code].forEach(run);
const { python } = mllama;

// A value as JSON that keeps what Python tells apart: [type, ...].
function told(value) {
  const kind = python.typeName(value);
  if (kind === "float") return [kind, python.shown(value)];
  if (kind === "int") return [kind, String(value)];
  if (value instanceof python.NDArray)
    return [value.kind, value.shape, [...value.numbers()].map(number => python.shown(number))];
  if (value instanceof Map) return [kind, [...value.values()].map(pair => pair.map(told))];
  if (Array.isArray(value)) return [kind, Array.from(value, told)];
  return [kind, ["str", "bool"].includes(kind) ? value : null];
}

function asked(work) {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof python.PyError)) throw error;
    return { kind: error.kind, line: error.line, sentence: error.sentence };
  }
}

const commands = {
  results: ({ sources }) => sources.map(source => asked(() => {
    const program = python.run(source);
    return { result: told(program.get("result") ?? null), printed: program.printed };
  })),
  check: ({ chapter, answers }) => {
    run(`exercises/${chapter}_code`);
    return answers.map(([label, source]) => mllama.checkAnswer(label, source));
  },
};

readline.createInterface({ input: process.stdin }).on("line", line => {
  const { command, ...given } = JSON.parse(line);
  console.log(JSON.stringify(commands[command](given)));
});
