"use strict";
// Chapter 7: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise, randn, gauss, tensor, numbersOf, apart, linear, python } = mllama;

  // Features of n tokens, [n, D · (1 + kept)]: the final state, then the kept ones channel by channel.
  function interleaved(states, n, width) {
    const [final, ...kept] = states;
    return Array.from({ length: n }, (_, t) => [...final.subarray(t * width, (t + 1) * width),
      ...Array.from({ length: width }, (_, c) => kept.map(state => state[t * width + c])).flat()]).flat();
  }

  codeExercise("projector-for-blocks", ["for_blocks"], regroup => {
    for (const [width, count] of [[4, 5], [6, 2], [5, 3]]) {
      const states = Array.from({ length: count + 1 }, () => randn(7, width).numbers()), all = width * (count + 1);
      const weight = randn(9, all), blocks = Array.from({ length: 7 }, (_, t) =>
        states.map(state => [...state.subarray(t * width, (t + 1) * width)])).flat(2);
      const got = numbersOf(regroup(weight, BigInt(width)), [9, all], `for a weight of [9, ${all}]`);
      const final = (_, i) => i % all < width;
      expect(apart(got.filter(final), weight.numbers().filter(final)) < 1e-3, "the final state meets other weights");
      const off = apart(linear(blocks, got, all), linear(interleaved(states, 7, width), weight.numbers(), all));
      expect(off < 1e-3, `with ${count} kept states of ${width} it is ${off.toFixed(1)} off`);
    }
  });

  codeExercise("share-of-each-state", ["shares"], shares => {
    for (const [width, count] of [[4, 5], [6, 2]]) {
      const n = 100, all = width * (count + 1), weight = randn(9, all), common = randn(n, width).numbers();
      // States of different sizes, each with a mean, and akin to one another.
      const states = Array.from({ length: count + 1 }, (_, j) =>
        common.map(number => (j + 1) * (gauss() + 1) + 2 * number));
      const features = tensor([n, all], interleaved(states, n, width));
      const ask = given => {
        const result = shares(given, weight, BigInt(width));
        if (Array.isArray(result)) return Float64Array.from(result, one => python.number(one));
        return numbersOf(result, [count + 1], `for ${count + 1} states`);
      };
      const got = ask(features), sum = got.reduce((a, b) => a + b, 0);
      expect(got.length === count + 1, `for ${count + 1} states it returns ${got.length}`);
      expect(Math.abs(sum - 1) < 1e-4, `the shares add up to ${sum.toFixed(3)}`);
      const belongs = (i, j) => j === 0 ? i % all < width : i % all >= width && (i % all - width) % count === j - 1;
      const moved = features.numbers().map((number, i) => belongs(i, 1) ? number + 10 : number);
      expect(apart(ask(tensor([n, all], moved)), got) < 1e-3,
        "a state counts for more when the same is added to all tokens");
      // What each part adds, by leaving all others out of the features.
      const spread = numbers => {
        const y = linear(numbers, weight.numbers(), all), mean = new Float64Array(9);
        y.forEach((number, i) => { mean[i % 9] += number / n; });
        return y.map((number, i) => number - mean[i % 9]);
      };
      const total = spread(features.numbers());
      const dot = numbers => numbers.reduce((add, number, i) => add + number * total[i], 0);
      for (let j = 0; j <= count; j++) {
        const only = features.numbers().map((number, i) => belongs(i, j) ? number : 0);
        const off = Math.abs(got[j] - dot(spread(only)) / dot(total));
        expect(off < 1e-3, `the share of state ${j} is ${off.toFixed(2)} off`);
      }
    }
  });
})();
