"use strict";
// Chapter 12: what the rank of two thin matrices keeps of a matrix. How full a matrix looks says
// little: a board of full squares has rank 1, a bare diagonal has all ranks.
mllama.figure("low_rank", figure => {
  const N = 16, CELL = 9, places = [...Array(N).keys()];

  // Numbers from -1 to 1 that look random, and are the same every time.
  const noise = seed => () => {
    seed = (1103515245 * seed + 12345) % 2147483648;
    return seed / 1073741824 - 1;
  };
  const filled = at => places.map(i => places.map(j => at(i, j)));
  const MATRICES = {
    "few directions, a long tail": () => {
      const next = noise(3), random = filled(next), waves = [[1, 2, 0.3], [3, 1, 1.1], [2, 4, 2.0]];
      return filled((i, j) => 0.2 * random[i][j] + waves.reduce((sum, [a, b, shift], k) =>
        sum + 0.6 ** (k + 1) * Math.cos(a * i * 0.4 + shift) * Math.cos(b * j * 0.35 - shift), 0));
    },
    "random numbers": () => filled(noise(7)),
    "a chessboard": () => filled((i, j) => ((i + j) % 2 ? -1 : 1)),
    "a diagonal": () => filled((i, j) => (i === j ? 1 : 0)),
    "a ring": () => filled((i, j) => (Math.abs(Math.hypot(i - 7.5, j - 7.5) - 5.5) < 0.9 ? 1 : 0)),
  };

  // Jacobi: turn pairs of columns until all are at right angles. Their lengths are then the
  // singular values, their directions u, and what turned them is v. Largest first.
  function directions(matrix) {
    const columns = places.map(j => matrix.map(row => row[j]));
    const v = places.map(j => places.map(i => (i === j ? 1 : 0)));
    const dot = (a, b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
    for (let sweep = 0, turned = true; turned && sweep < 60; sweep++) {
      turned = false;
      for (let p = 0; p < N; p++) for (let q = p + 1; q < N; q++) {
        const a = dot(columns[p], columns[p]), b = dot(columns[q], columns[q]), c = dot(columns[p], columns[q]);
        if (Math.abs(c) <= 1e-13 * Math.sqrt(a * b) + 1e-200) continue;
        turned = true;
        const angle = 0.5 * Math.atan2(2 * c, a - b), cos = Math.cos(angle), sin = Math.sin(angle);
        for (const set of [columns, v]) for (let i = 0; i < N; i++) {
          const x = set[p][i], y = set[q][i];
          [set[p][i], set[q][i]] = [cos * x + sin * y, cos * y - sin * x];
        }
      }
    }
    return columns.map((column, j) => ({ size: Math.sqrt(dot(column, column)), column, v: v[j] }))
      .sort((a, b) => b.size - a.size);
  }

  // The 11B's layers that are adapted where nothing else is said (self, mlp, cross): inputs plus
  // outputs of each, which is what an adapter costs for every 1 of rank.
  const D = 4096, F = 14336, KEYS = 1024, SELF = 32, CROSS = 8;
  const attention = 2 * (D + D) + 2 * (D + KEYS), mlp = 3 * (D + F);
  const perRank = (SELF + CROSS) * (attention + mlp);

  const which = figure.choice({ label: "The matrix", options: Object.keys(MATRICES) });
  const rank = figure.slider({ label: "Rank", min: 1, max: N, value: 2 });

  const cached = {};
  const state = () => {
    const matrix = MATRICES[which.value](), r = rank.value;
    const found = (cached[which.value] ??= directions(matrix));
    const product = filled((i, j) => found.slice(0, r).reduce((sum, d) => sum + d.column[i] * d.v[j], 0));
    const squares = found.map(d => d.size ** 2), all = squares.reduce((a, b) => a + b);
    return {
      matrix, product, missing: filled((i, j) => matrix[i][j] - product[i][j]),
      sizes: found.map(d => d.size), shares: squares.map((_, i) =>
        squares.slice(0, i + 1).reduce((a, b) => a + b) / all),
      thin: 2 * N * r, parameters: perRank * r, bytes: 4 * perRank * r,
    };
  };

  // Squares as large as the numbers: full for those above 0, an outline for those below.
  function squares(svg, matrix, most, title, note) {
    svg.text(80, 14, title, { anchor: "middle" });
    svg.rect(6, 22, N * CELL + 4, N * CELL + 4, { ink: "grey" });
    for (const i of places) for (const j of places) {
      const side = (CELL - 1) * Math.sqrt(Math.min(Math.abs(matrix[i][j]) / most, 1)), above = matrix[i][j] > 0;
      if (side < 0.6) continue;
      const edge = above ? 0 : Math.min(0.8, side / 2);
      svg.rect(8 + CELL * (j + 0.5) - (side - edge) / 2, 24 + CELL * (i + 0.5) - (side - edge) / 2, side - edge,
        side - edge, above ? { fill: "blue" } : { ink: "orange", "stroke-width": edge });
    }
    svg.text(80, 190, note, { anchor: "middle", size: 12 });
  }
  const most = matrix => Math.max(...matrix.flat().map(Math.abs));
  const percent = share => `${(100 * share).toFixed(share > 0.9995 && share < 1 - 1e-9 ? 2 : 1)} %`;

  figure.drawing({ width: 160, height: 196 }, svg => {
    const { matrix } = state();
    squares(svg, matrix, most(matrix), "the change ΔW", `${N * N} numbers`);
  });
  figure.drawing({ width: 160, height: 196 }, svg => {
    const { matrix, product, thin } = state();
    squares(svg, product, most(matrix), "the product B·A", `from ${thin} numbers`);
  });
  figure.drawing({ width: 160, height: 196 }, svg => {
    const { matrix, missing, shares } = state();
    squares(svg, missing, most(matrix), "what is missing", `${percent(1 - shares[rank.value - 1])} of the squared norm`);
  });
  const values = figure.drawing({ width: 250, height: 196 }, svg => {
    const { sizes, shares } = state(), high = 120, left = 30;
    svg.text(left, 14, "singular values σ, largest first");
    sizes.forEach((size, i) => {
      const height = high * size / sizes[0], kept = i < rank.value;
      svg.rect(left + 13 * i + 1.5, 160 - height, 10, height,
        kept ? { fill: "blue" } : { ink: "grey", "stroke-width": 1 });
    });
    svg.line(left - 2, 160, left + 13 * N, 160, { ink: "grey" });
    svg.line(left + 13 * rank.value, 26, left + 13 * rank.value, 166, { ink: "orange", width: 2 });
    svg.circle(left + 13 * rank.value, 166, 7, { fill: "orange", "data-drag": "rank" });
    const share = percent(shares[rank.value - 1]), near = rank.value < 7;
    svg.text(left + 13 * rank.value + (near ? 5 : -5), 38, near ? `kept: ${share}` : share,
      { anchor: near ? "start" : "end", size: 12 });
    for (const i of [1, 8, 16]) svg.text(left + 13 * i - 6.5, 190, i, { anchor: "middle", size: 12 });
  });
  values.onDrag((_, x) => { rank.value = Math.round((x - 30) / 13); });

  figure.values(state);

  figure.words(() => {
    const { shares, thin, parameters, bytes } = state();
    const against = thin < N * N ? "fewer than" : thin > N * N ? "more than" : "as many as";
    return `Rank ${rank.value} keeps ${percent(shares[rank.value - 1])} of the squared norm of the matrix, with ${thin} numbers `
      + `in A and B, ${against} its ${N * N}. On the 11B's self-attention, MLPs and cross-attention, an adapter of rank `
      + `${rank.value} has ${parameters.toLocaleString("en")} parameters, a file of ${(bytes / 2 ** 20).toFixed(1)} MiB.`;
  });
});
