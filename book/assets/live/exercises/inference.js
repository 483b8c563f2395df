"use strict";
// Chapter 10: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect, codeExercise, randn, tensor, numbersOf, apart, probabilities } = mllama;

  exercise("tokens-that-stay", answer => {
    const kept = temperature => {
      const weights = Array.from({ length: 40 }, (_, i) => 2 ** (-i / temperature));
      const sum = weights.reduce((a, b) => a + b);
      let before = 0, count = 0;
      for (const weight of weights) {
        if (before / sum <= 0.9) count += 1;
        before += weight;
      }
      return count;
    };
    expect(answer !== kept(1), "those would stay at temperature 1");
    expect(answer !== kept(0.5), "does a temperature above 1 sharpen or flatten?");
    expect(answer !== kept(2) - 1, "what of the token with which the sum passes p?");
    expect(answer === kept(2), "what have all likelier tokens together, at each?");
  });

  exercise("rows-without-end", answer => {
    const tokens = 8192, [weights, image] = [18.37e9, 0.21e9];  // bytes, as the chapter counts them
    const own = image + tokens * 32 * 2 * 8 * 128 * 2;  // of one row's caches
    const work = weights + 4 * 32 * 4096 * tokens;  // two operations a weight, of two bytes
    const rows = { a: 30, b: 300, c: 3000, d: 1e12 };
    expect(answer in rows, "choose one of the letters");
    const found = rows[answer] * work / (weights + rows[answer] * own);
    if (answer === "d") expect(found < 295, "with enough rows, arithmetic decides");
    else expect(found >= 295, `then there are ${Math.round(found)} operations for each byte`);
  });

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
