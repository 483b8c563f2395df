"use strict";
// How code that is written in the page is checked; loaded when a box for it (code.js) is first used.
//
// A chapter's script, exercises/attention_code.js, says what is tried:
//
//     mllama.codeExercise("one-head", ["one_head"], oneHead => { expect(..., "what is not so"); });
//
// What is asked for comes as functions of JavaScript, or as what it is. A check tries them on numbers that are
// drawn anew each time and compares with the page's engine or with a formula.
(() => {
  const { python, expect, exercise } = mllama, { NDArray } = python;
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

  const printed = () => program?.printed ?? "";

  Object.assign(mllama, { codeExercise, printed, tensor, draw, gauss, randn, numbersOf, apart, few, linear });
})();
