"use strict";
// What torch does for the chapters. A tensor is a Float32Array, row after row; its shape stands
// beside it in a comment, in the letters of the book: T tokens, D width, H heads, E head size.
//
// These are classic scripts on one object, `mllama`, because a page opened from a folder may
// load nothing else. They are read in the order in which the page loads them, as chapters are.
globalThis.mllama = {};

(() => {
  // x [T, I] and a weight [O, I] to [T, O]. The one function written for speed: eight products
  // at once, so that a number that was fetched is used several times. Where rows run out, the
  // last one is computed again.
  function matmul(x, weight, outs, ins) {
    const length = x.length / ins, y = new Float32Array(length * outs);
    const lastRow = length - 1, lastOut = outs - 1;
    if (length < 4) {  // one token: eight outputs at a time
      for (let t = 0; t < length; t++) for (let o = 0; o < outs; o += 8) {
        const at = n => Math.min(o + n, lastOut) * ins;
        const a = at(0), b = at(1), c = at(2), d = at(3), e = at(4), f = at(5), g = at(6), h = at(7);
        let s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
        for (let i = 0, from = t * ins; i < ins; i++) {
          const v = x[from + i];
          s0 += v * weight[a + i]; s1 += v * weight[b + i];
          s2 += v * weight[c + i]; s3 += v * weight[d + i];
          s4 += v * weight[e + i]; s5 += v * weight[f + i];
          s6 += v * weight[g + i]; s7 += v * weight[h + i];
        }
        const sums = [s0, s1, s2, s3, s4, s5, s6, s7];
        for (let n = Math.min(8, outs - o); n--;) y[t * outs + o + n] = sums[n];
      }
      return y;
    }
    for (let t = 0; t < length; t += 4) {  // four tokens, two outputs
      const t1 = Math.min(t + 1, lastRow), t2 = Math.min(t + 2, lastRow), t3 = Math.min(t + 3, lastRow);
      for (let o = 0; o < outs; o += 2) {
        const o1 = Math.min(o + 1, lastOut);
        const a = o * ins, b = o1 * ins, e = t * ins, f = t1 * ins, g = t2 * ins, h = t3 * ins;
        let p0 = 0, p1 = 0, p2 = 0, p3 = 0, q0 = 0, q1 = 0, q2 = 0, q3 = 0;
        for (let i = 0; i < ins; i++) {
          const p = weight[a + i], q = weight[b + i];
          const x0 = x[e + i], x1 = x[f + i], x2 = x[g + i], x3 = x[h + i];
          p0 += p * x0; p1 += p * x1; p2 += p * x2; p3 += p * x3;
          q0 += q * x0; q1 += q * x1; q2 += q * x2; q3 += q * x3;
        }
        y[t * outs + o] = p0; y[t1 * outs + o] = p1; y[t2 * outs + o] = p2; y[t3 * outs + o] = p3;
        y[t * outs + o1] = q0; y[t1 * outs + o1] = q1; y[t2 * outs + o1] = q2; y[t3 * outs + o1] = q3;
      }
    }
    return y;
  }

  // As torch.nn.Linear, of the tensors `name.weight` [O, I] and, where there is one, `name.bias`.
  class Linear {
    constructor(tensors, name) {
      this.weight = tensors.get(`${name}.weight`);
      this.bias = tensors.has(`${name}.bias`) ? tensors.get(`${name}.bias`) : null;
    }

    forward(x) {  // [T, I] to [T, O]
      const outs = this.weight.shape[0], ins = this.weight.data.length / outs;
      const y = matmul(x, this.weight.data, outs, ins);
      if (this.bias) for (let i = 0; i < y.length; i++) y[i] += this.bias.data[i % outs];
      return y;
    }
  }

  class LayerNorm {
    constructor(tensors, name, eps) {
      this.weight = tensors.get(`${name}.weight`).data;
      this.bias = tensors.get(`${name}.bias`).data;
      this.eps = eps;
    }

    forward(x) {  // [T, D] to [T, D]
      const size = this.weight.length, y = new Float32Array(x.length);
      for (let from = 0; from < x.length; from += size) {
        let mean = 0, variance = 0;
        for (let i = 0; i < size; i++) mean += x[from + i] / size;
        for (let i = 0; i < size; i++) variance += (x[from + i] - mean) ** 2 / size;
        const scale = 1 / Math.sqrt(variance + this.eps);
        for (let i = 0; i < size; i++)
          y[from + i] = (x[from + i] - mean) * scale * this.weight[i] + this.bias[i];
      }
      return y;
    }
  }

  // x + scale * y, a new tensor.
  function add(x, y, scale = 1) {
    return x.map((value, i) => value + scale * y[i]);
  }

  const silu = v => v / (1 + Math.exp(-v));

  // The error function to 1.5e-7: Abramowitz and Stegun 1964, formula 7.1.26.
  function erf(v) {
    const t = 1 / (1 + 0.3275911 * Math.abs(v));
    const factors = [1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592];
    const sum = factors.reduce((sum, factor) => (sum + factor) * t, 0);
    return Math.sign(v) * (1 - sum * Math.exp(-v * v));
  }

  const gelu = v => 0.5 * v * (1 + erf(v * Math.SQRT1_2));

  Object.assign(mllama, { Linear, LayerNorm, add, silu, gelu });
})();
