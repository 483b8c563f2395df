"use strict";
// Chapter 2: where a token stands, told by turning its vectors.
(() => {
  // Radians a position for every pair, fp32 [E/2], fastest first.
  function ropeFrequencies(headDim, theta) {
    return Float32Array.from({ length: headDim / 2 }, (_, i) => theta ** (-2 * i / headDim));
  }

  // Cosine and sine of T positions, each [T, E/2].
  function ropeCosSin(frequencies, positions) {
    const angles = Float32Array.from(
      positions.flatMap(position => Array.from(frequencies, f => Math.fround(position * f))));
    return { cos: angles.map(Math.cos), sin: angles.map(Math.sin) };
  }

  // Turn x [T, H, E]; which two numbers of a head make pair i is the layout's business.
  function turn(x, headDim, { cos, sin }, pair) {
    const half = headDim / 2, heads = x.length / headDim / (cos.length / half);
    const y = new Float32Array(x.length);
    for (let t = 0, head = 0; t < cos.length; t += half)
      for (let h = 0; h < heads; h++, head += headDim)
        for (let i = 0; i < half; i++) {
          const [a, b] = pair(i, half);
          const first = x[head + a], second = x[head + b];
          y[head + a] = first * cos[t + i] - second * sin[t + i];
          y[head + b] = second * cos[t + i] + first * sin[t + i];
        }
    return y;
  }

  // The hub's layout, half-split: pair (i, i + E/2).
  function applyRope(x, headDim, angles) {
    return turn(x, headDim, angles, (i, half) => [i, i + half]);
  }

  // Meta's layout: pair (2i, 2i + 1).
  function applyRopeInterleaved(x, headDim, angles) {
    return turn(x, headDim, angles, i => [2 * i, 2 * i + 1]);
  }

  Object.assign(mllama, { ropeFrequencies, ropeCosSin, applyRope, applyRopeInterleaved });
})();
