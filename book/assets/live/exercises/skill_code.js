"use strict";
// Chapter 14: the checks of code that is written in the page.
(() => {
  const { expect, codeExercise, draw, python, python: { withSignature, Tuple, number } } = mllama;

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
