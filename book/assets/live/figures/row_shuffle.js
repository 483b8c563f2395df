"use strict";
// Chapter 9: the rows of one head, put from Meta's order into the half-split one: once, more often, or by the
// inverse permutation. Which rows does the code turn together then?
mllama.figure("row_shuffle", figure => {
  const INKS = ["blue", "orange", "green", "purple"];
  const WAYS = ["to half-split", "its inverse"];
  const rows = figure.choice({ label: "Rows a head", options: ["4", "8", "16"], value: "8" });
  const way = figure.choice({ label: "Permutation", options: WAYS });
  const times = figure.slider({ label: "Times applied", min: 0, max: 6, value: 1 });

  const half = () => Number(rows.value) / 2;
  const forward = now => [...now.filter((_, i) => i % 2 === 0), ...now.filter((_, i) => i % 2 === 1)];
  const inverse = now => now.map((_, i) => now[i % 2 === 0 ? i / 2 : half() + (i - 1) / 2]);

  // order()[place] is the row, by Meta's count, that stands there.
  function order() {
    let now = [...Array(2 * half()).keys()];
    for (let n = 0; n < times.value; n++) now = way.value === WAYS[0] ? forward(now) : inverse(now);
    return now;
  }
  // For each pair of places that the code turns together: its rows, and whether they are the pair of that speed.
  const pairs = () => Array.from({ length: half() }, (_, i) => {
    const [a, b] = [order()[i], order()[half() + i]];
    return { a, b, right: a === 2 * i && b === a + 1 };
  });
  const right = () => pairs().filter(pair => pair.right).length;

  const TOP = 24, ROOM = 320;
  figure.drawing({ width: 320, height: 350 }, svg => {
    const now = order(), high = ROOM / now.length, y = place => TOP + high * place;
    svg.text(60, 14, "Meta’s order", { anchor: "middle" });
    svg.text(260, 14, `applied: ${times.value}`, { anchor: "middle" });
    const box = (x, place, row) => {
      const pair = Math.floor(row / 2), strong = pair < 4;
      svg.rect(x, y(place), 100, high - 3, { fill: INKS[pair % 4], "fill-opacity": strong ? 0.4 : 0.13 });
      svg.text(x + 50, y(place) + high / 2 + 3, `row ${row}`, { anchor: "middle", size: 12 });
    };
    now.forEach((row, place) => {
      box(10, row, row);
      box(210, place, row);
      svg.line(112, y(row) + high / 2 - 1, 208, y(place) + high / 2 - 1, { ink: INKS[Math.floor(row / 2) % 4], width: 1 });
    });
  });

  figure.drawing({ width: 320, height: 240 }, svg => {
    svg.text(0, 14, "Turned together by the code");
    pairs().forEach(({ a, b, right }, i) => {
      const y = 42 + 25 * i, said = right ? "✓" : "✗ no pair";
      svg.text(6, y, `places ${i}, ${half() + i}: rows ${a}, ${b}`);
      svg.text(190, y, said, { fill: right ? "ink" : "orange" });
    });
  });

  figure.values(() => ({ order: order(), right: right() }));

  figure.words(() => {
    const n = half(), how = times.value === 1 ? "once" : `${times.value} times`;
    const name = way.value === WAYS[0] ? "The permutation to the half-split order" : "The inverse permutation";
    const back = order().every((row, place) => row === place);
    const state = right() === n ? `all ${n} pairs are turned together, each at its own speed`
      : `${right() || "none"} of ${n} pairs ${right() === 1 ? "is" : "are"} turned together`;
    return `${name}, applied ${how} to a head of ${2 * n} rows: ${state}. `
      + `${back ? "All rows are where they were in Meta’s file. " : ""}One colour and strength: a pair in Meta’s order.`;
  });
});
