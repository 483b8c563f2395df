"use strict";
// Chapter 10: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise, randn, tensor, numbersOf, apart, probabilities } = mllama;

  codeExercise("draft-and-keep", ["draft_and_keep"], rule => {
    const count = 50, softmax = numbers => {
      const raised = numbers.map(Math.exp), sum = raised.reduce((a, b) => a + b);
      return raised.map(number => number / sum);
    };
    const wanted = softmax(randn(count).numbers().map(number => 2 * number));
    const drafted = softmax(randn(count).numbers().map(number => 2 * number));
    const logits = numbers => Float32Array.from(numbers, Math.log);
    const cut = Float64Array.from(probabilities(logits(drafted), { temperature: 1, topK: 10 }));
    const nucleus = Float64Array.from(probabilities(logits(wanted), { temperature: 1, topP: 0.8 }));
    const one = (length, at) => Float64Array.from({ length }, (_, i) => Number(i === at));
    for (const [name, p, q] of [
      ["two distributions", wanted, drafted], ["q cut to ten tokens", wanted, cut], ["both cut", nucleus, cut],
      ["p equal to q", wanted, wanted.slice()], ["nothing in common", one(3, 0), one(3, 1)],
    ]) {
      const shape = [p.length], both = rule(tensor(shape, p), tensor(shape, q));
      expect(Array.isArray(both) && both.length === 2, "it returns no pair");
      const [kept, instead] = both.map((part, i) => numbersOf(part, shape, `as ${["kept", "instead"][i]}`));
      for (const [called, numbers] of Object.entries({ kept, instead }))
        expect(numbers.every(number => Number.isFinite(number) && number >= -1e-6),
          `${name}: ${called} has values that are nan or below 0`);
      expect(Math.max(...kept) <= 1 + 1e-6, `${name}: a token is kept with more than 1`);
      const add = numbers => numbers.reduce((a, b) => a + b, 0), total = add(instead);
      expect(Math.abs(total - 1) < 1e-4, `${name}: instead has a sum of ${total.toFixed(3)}`);
      const stays = q.map((number, i) => number * kept[i]), others = 1 - add(stays);
      const off = apart(stays.map((number, i) => number + others * instead[i]), p);
      expect(off < 1e-5, `${name}: what is written is ${off.toFixed(3)} from p`);
      const more = add(p.map((number, i) => Math.min(number, q[i]))) - add(stays);
      expect(more < 1e-4, `${name}: ${more.toFixed(3)} more of the drafts could be kept`);
    }
  });
})();
