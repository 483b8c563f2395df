"use strict";
// Chapter 3: several query heads share one key and one value head.
(() => {
  const { Linear } = mllama;

  const seesAll = () => true;

  // query [T, H, E]; key and value [S, G, E]; sees(t, s) says whether query t may read key s.
  // Returns the output [T, H, E] and the weights [T, H, S].
  function attentionByHand(query, key, value, headDim, heads, groups, sees = seesAll) {
    const length = query.length / (heads * headDim), keys = key.length / (groups * headDim);
    const output = new Float32Array(query.length);
    const weights = new Float32Array(length * heads * keys);
    for (let t = 0; t < length; t++) for (let h = 0; h < heads; h++) {
      const q = (t * heads + h) * headDim, w = (t * heads + h) * keys;
      const group = Math.floor(h * groups / heads);
      let most = -Infinity, sum = 0;
      for (let s = 0; s < keys; s++) {
        let score = -Infinity;
        if (sees(t, s)) {
          score = 0;
          const k = (s * groups + group) * headDim;
          for (let i = 0; i < headDim; i++) score += query[q + i] * key[k + i];
          score /= Math.sqrt(headDim);
        }
        weights[w + s] = score;
        if (score > most) most = score;
      }
      for (let s = 0; s < keys; s++) sum += weights[w + s] = Math.exp(weights[w + s] - most);
      for (let s = 0; s < keys; s++) {
        const weight = weights[w + s] /= sum;
        if (weight === 0) continue;
        const v = (s * groups + group) * headDim;
        for (let i = 0; i < headDim; i++) output[q + i] += weight * value[v + i];
      }
    }
    return { output, weights };
  }

  // Keys and values of all tokens so far, for every self-attention layer.
  class KVCache {
    constructor() {
      this.keys = {};
      this.values = {};
      this.length = 0;
    }

    // Store those of T new tokens; return all, [S, G, E].
    update(layer, key, value) {
      this.keys[layer] = joined(this.keys[layer], key);
      this.values[layer] = joined(this.values[layer], value);
      return [this.keys[layer], this.values[layer]];
    }
  }

  function joined(before, more) {
    if (!before) return more;
    const all = new Float32Array(before.length + more.length);
    all.set(before);
    all.set(more, before.length);
    return all;
  }

  class SelfAttention {
    constructor(tensors, name, config, layer) {
      this.config = config;
      this.layer = layer;
      this.rotate = mllama.applyRope;
      for (const part of ["q_proj", "k_proj", "v_proj", "o_proj"])
        this[part] = new Linear(tensors, `${name}.${part}`);
    }

    forward(hidden, { angles, cache }) {  // [T, D] to [T, D]
      const { head_dim: size, num_attention_heads: heads, num_key_value_heads: groups } = this.config;
      const query = this.rotate(this.q_proj.forward(hidden), size, angles);
      const newKey = this.rotate(this.k_proj.forward(hidden), size, angles);
      const start = cache.length;
      const [key, value] = cache.update(this.layer, newKey, this.v_proj.forward(hidden));
      const causal = (t, s) => s <= start + t;
      const { output } = attentionByHand(query, key, value, size, heads, groups, causal);
      return this.o_proj.forward(output);
    }
  }

  Object.assign(mllama, { attentionByHand, joined, KVCache, SelfAttention });
})();
