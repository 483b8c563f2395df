"use strict";
// Chapter 14: the checks of its exercises that can be answered in the page.
(() => {
  const { exercise, expect, codeExercise, draw, python, python: { withSignature, Tuple, number } } = mllama;

  exercise("bytes-of-a-parameter", answer => {
    const number = 4, gradient = 4, averages = 2 * 4;
    const all = number + gradient + averages;
    expect(answer !== number, "what does a step need besides the number itself?");
    expect(answer !== number + gradient, "what does AdamW remember?");
    expect(answer !== all - 4, "how many averages does AdamW keep?");
    expect(answer === all, "number, gradient, optimiser: in which precision is each?");
  });

  exercise("price-of-a-rank", answer => {
    const q = 4096 + 4096, k = 4096 + 1024, mlp = 4096 + 14336;
    const layer = 2 * q + 2 * k + 3 * mlp;  // of self- and of cross-attention alike
    const gib = 64 * 40 * layer / 2 ** 30;
    expect(Math.abs(answer - 4 * gib) > 0.06, "these are the matrices alone");
    expect(Math.abs(answer - 2 * gib) > 0.06, "is this of rank 64, and all of it?");
    expect(Math.abs(answer - 16 * gib) < 0.06, "what grows with the rank, and how fast?");
  });

  exercise("way-back", answer => {
    expect(answer === "d", "what would a gradient there be for? Count two depths");
  });

  codeExercise("longest-text", ["longest"], longest => {
    for (const tokens of [900, 3000]) {
      // A step's peak as it is on the small model: in short texts another part of the step has it.
      const [anyway, each, short] = [draw(4e5, 1e6), 3 * draw(1e3, 4e3), draw(105, 140)];
      const peak = length => anyway + each * Math.max(length, (2 * length + short) / 3);
      const room = peak(tokens) + draw(1, each);
      let asked = 0;
      const costOf = ([length]) => {
        asked += 1;
        const number = Number(length);
        expect(Number.isInteger(number) && number > 16, "a text has 17 tokens or more");
        expect(number <= 512, `it asks what ${number.toLocaleString("en")} tokens cost, on a small card`);
        expect(asked <= 3, "it asks more than three times");
        return BigInt(peak(number));
      };
      const found = longest(costOf, BigInt(room)), length = Number(found);
      expect(typeof found === "bigint", `it returns ${python.shown(found)}, no whole number`);
      expect(length > 16, `it returns ${length} tokens`);
      expect(length < 1e5, `it returns ${length.toLocaleString("en")} tokens: far too many`);
      const told = length.toLocaleString("en"), part = (peak(length) / room).toFixed(2);
      const share = `a text of ${told} tokens takes ${part} of the room`;
      expect(peak(length) <= room, share);
      expect(peak(length + Math.floor(length / 50)) > room, `${share}: more fit`);
    }
  });

  // Wilson's interval, as the package has it: (low, high).
  function interval(right, total) {
    const z = 1.96, share = right / total, middle = (share + z * z / (2 * total)) / (1 + z * z / total);
    const half = z * Math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / (1 + z * z / total);
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  }

  codeExercise("questions-to-tell", ["times"], times => {
    const part = (right, other, asked, factor) => {
      const [low, high] = [right, other].sort((a, b) => a - b);
      return interval(low * factor, asked * factor)[1] < interval(high * factor, asked * factor)[0];
    };
    const fresh = Array.from({ length: 4 }, () => {
      const right = draw(5, 30);
      return [right, right + draw(3, 9), draw(40, 100)];
    });
    for (const [right, other, asked] of [[22, 8, 76], [10, 3, 38], [14, 10, 38], [10, 14, 38], ...fresh]) {
      const answer = times(BigInt(right), BigInt(other), BigInt(asked)), factor = Number(answer);
      const told = `for ${right} and ${other} right of ${asked} it returns ${python.shown(answer)}`;
      expect(typeof answer === "bigint" && answer > 0n, `${told}: no whole number`);
      expect(part(right, other, asked, factor), `${told}: there they overlap`);
      expect(factor === 1 || !part(right, other, asked, factor - 1), `${told}: fewer are enough`);
    }
  }, {
    interval: withSignature("interval", "right total",
      (right, total) => Tuple.from(interval(number(right), number(total)))),
  });
})();
