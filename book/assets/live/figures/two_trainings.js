"use strict";
// Chapter 14: two recorded trainings beside each other, as far as the same designers were held out: how
// many names they have right, what the intervals say, and how many questions it would take to say more.
mllama.figure("two_trainings", figure => {
  const ASKED = 38, OLD_ASKED = 220, OLD_BEFORE = 217;  // questions a training
  const DESIGNERS = ["noto", "twemoji", "openmoji", "fluent-emoji-flat"];
  // notebooks/measured/skills.json: for each designer, held out, [names right, old questions right].
  const RECORDED = {
    "full, rate 0.0015": [[19, 28], [14, 26], [4, 23], [16, 22]],
    "full, rate 0.003": [[13, 0], [10, 1], [6, 1], [12, 0]],
    "full, rate 0.006": [[9, 0], [8, 0], [8, 0], [11, 0]],
    "all, rank 1, rate 0.008": [null, null, null, [11, 21]],
    "all, rank 2, rate 0.008": [[14, 0], [13, 18], [7, 1], [15, 7]],
    "all, rank 4, rate 0.008": [null, null, null, [12, 1]],
    "all, rank 8, rate 0.004": [null, null, null, [15, 1]],
    "all, rank 8, rate 0.008": [null, null, null, [11, 0]],
    "all, rank 16, rate 0.004": [null, null, null, [16, 11]],
    "all, rank 16, rate 0.008": [null, null, null, [0, 0]],
    "self, rate 0.008": [null, [6, 0], null, [3, 0]],
    "cross, rate 0.008": [null, [11, 2], null, [10, 2]],
    "vision, rate 0.008": [null, [5, 0], null, [6, 0]],
    "head, rate 0.008": [null, [0, 68], null, [0, 52]],
    "mixed, 1/4, rate 0.008": [null, null, null, [11, 195]],
    "mixed, 1/2, rate 0.008": [null, null, null, [11, 205]],
  };
  const options = Object.keys(RECORDED);
  const chosen = [
    figure.choice({ label: "First", options, value: "all, rank 2, rate 0.008" }),
    figure.choice({ label: "Second", options, value: "cross, rate 0.008" }),
  ];
  const times = figure.slider({ label: "If so many times the questions were asked",
    min: 1, max: 32, value: 1, format: n => (n === 1 ? "once" : `${n} times`) });

  // Where the true share lies, with 95 % confidence (Wilson).
  function interval(right, total) {
    const z = 1.96, share = right / total, whole = 1 + z * z / total;
    const middle = (share + z * z / (2 * total)) / whole;
    const half = z * Math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2) / whole;
    return [Math.max(0, middle - half), Math.min(1, middle + half)];
  }

  const common = () => DESIGNERS.filter((_, i) => chosen.every(({ value }) => RECORDED[value][i]));
  const counted = () => chosen.map(({ value }) => {
    const rows = RECORDED[value].filter((_, i) => common().includes(DESIGNERS[i]));
    const sum = i => rows.reduce((total, row) => total + row[i], 0);
    const asked = ASKED * rows.length, oldAsked = OLD_ASKED * rows.length;
    return { setting: value, right: sum(0), asked, old: sum(1), oldAsked };
  });
  const intervals = n => counted().map(({ right, asked }) => interval(n * right, n * asked));
  const apart = n => {
    const [a, b] = intervals(n);
    return a[0] > b[1] || b[0] > a[1];
  };
  const enough = () => {
    for (let n = 1; n <= 1000; n++) if (apart(n)) return n;
    return null;
  };

  const INKS = ["blue", "orange"], X = 10, WIDTH = 300;
  // A scale from 0 to `most` below two rows of 56 units each.
  function scale(svg, title, most, ticks) {
    svg.text(X, 14, title);
    svg.line(X, 142, X + WIDTH, 142, { ink: "grey" });
    for (const tick of ticks) {
      const x = X + WIDTH * tick / most;
      svg.line(x, 138, x, 142, { ink: "grey" });
      svg.text(x, 158, tick, { anchor: tick === 0 ? "start" : tick === most ? "end" : "middle" });
    }
    return share => X + WIDTH * share / most;
  }

  figure.drawing({ width: 320, height: 180 }, svg => {
    const at = scale(svg, "names right, of drawings held out", 0.6, [0, 0.2, 0.4, 0.6]), chance = at(1 / ASKED);
    svg.line(chance, 24, chance, 142, { ink: "grey", "stroke-dasharray": "2 3" });
    svg.text(chance, 176, "chance (dotted)");
    counted().forEach(({ setting, right, asked }, i) => {
      const y = 52 + 56 * i, [low, high] = intervals(times.value)[i].map(at), ink = INKS[i];
      svg.text(X + 20, y - 14, setting);
      svg.line(low, y, high, y, { ink, width: 3 });
      for (const x of [low, high]) svg.line(x, y - 6, x, y + 6, { ink, width: 2 });
      const x = at(right / asked);
      if (i) svg.rect(x - 5, y - 5, 10, 10, { fill: ink });
      else svg.circle(x, y, 6, { fill: ink });
    });
  });

  figure.drawing({ width: 320, height: 180 }, svg => {
    const at = scale(svg, "old questions right", 1, [0, 0.5, 1]), before = at(OLD_BEFORE / OLD_ASKED);
    svg.line(before, 24, before, 142, { ink: "grey", "stroke-dasharray": "6 3" });
    svg.text(before + 14, 176, "before (dashed)", { anchor: "end" });
    counted().forEach(({ setting, old, oldAsked }, i) => {
      const y = 44 + 56 * i;
      svg.text(X, y - 6, setting);
      svg.rect(X, y, Math.max(at(old / oldAsked) - X, 1), 16, { fill: INKS[i] });
    });
  });

  figure.values(() => ({ recorded: RECORDED, designers: common(), counted: counted(),
    intervals: intervals(times.value), apart: apart(times.value), enough: enough() }));

  figure.words(() => {
    const [a, b] = counted(), [first, second] = intervals(times.value), needed = enough();
    const part = ([low, high]) => `${low.toFixed(2)} to ${high.toFixed(2)}`;
    const said = [`Held out in turn: ${common().join(", ")}.`,
      `${a.setting}: ${a.right} of ${a.asked} names right (${part(first)}); `
      + `${b.setting}: ${b.right} of ${b.asked} (${part(second)}).`];
    if (times.value > 1)
      said.push(`The intervals are those of ${times.value} times the questions and the same shares.`);
    if (a.setting === b.setting) said.push("This is one training twice.");
    else if (apart(times.value)) said.push("The intervals lie apart.");
    else said.push("The intervals overlap: so many questions don't tell the two apart. "
      + (needed ? `If the shares stayed the same, ${needed} times the questions would.`
        : "Nor would a thousand times the questions, if the shares stayed the same."));
    said.push(`Of ${a.oldAsked} old questions ${a.old} and ${b.old} are right; before the training `
      + `${OLD_BEFORE * a.oldAsked / OLD_ASKED} were.`);
    return said.join(" ");
  });
});
