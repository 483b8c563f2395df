"use strict";
// Chapter 8: how text looks at images.
(() => {
  const { DecoderLayer, Linear, MLP, RMSNorm, attentionByHand, joined } = mllama;

  // Which tokens see which image: [start, end] an image, an end of Infinity where there is none.
  // A token sees the images from their own token on until the next image's; images in a row
  // share their end.
  function visibleRanges(tokens, imageId) {
    const starts = tokens.flatMap((token, i) => (token === imageId ? [i] : []));
    const ends = [...starts.slice(1), Infinity];
    for (let i = starts.length - 2; i >= 0; i--)
      if (starts[i + 1] === starts[i] + 1) ends[i] = ends[i + 1];
    return starts.map((start, i) => [start, ends[i]]);
  }

  class CrossAttention {
    constructor(tensors, name, config) {
      this.config = config;
      for (const part of ["q_proj", "k_proj", "v_proj", "o_proj"])
        this[part] = new Linear(tensors, `${name}.${part}`);
      for (const part of ["q_norm", "k_norm"])  // over a head's E numbers
        this[part] = new RMSNorm(tensors, `${name}.${part}`, config.rms_norm_eps);
    }

    keysAndValues(vision) {  // [V, D] to [V, G, E] twice
      return [this.k_norm.forward(this.k_proj.forward(vision)), this.v_proj.forward(vision)];
    }

    attend(query, key, value, sees) {  // { output [T, H, E], weights [T, H, V] }
      const { head_dim: size, num_attention_heads: heads, num_key_value_heads: groups } = this.config;
      return attentionByHand(query, key, value, size, heads, groups, sees);
    }

    forward(hidden, key, value, sees) {  // [T, D] to [T, D]
      const query = this.q_norm.forward(this.q_proj.forward(hidden));
      return this.o_proj.forward(this.attend(query, key, value, sees).output);
    }
  }

  // A layer that lets text see images, scaled by two gates.
  class CrossAttentionLayer {
    constructor(tensors, name, config, layer) {
      const eps = config.rms_norm_eps;
      this.layer = layer;
      this.input_layernorm = new RMSNorm(tensors, `${name}.input_layernorm`, eps);
      this.cross_attn = new CrossAttention(tensors, `${name}.cross_attn`, config);
      this.cross_attn_attn_gate = tensors.get(`${name}.cross_attn_attn_gate`).data;
      this.post_attention_layernorm = new RMSNorm(tensors, `${name}.post_attention_layernorm`, eps);
      this.mlp = new MLP(tensors, `${name}.mlp`);
      this.cross_attn_mlp_gate = tensors.get(`${name}.cross_attn_mlp_gate`).data;
    }

    // Both branches are 0 for tokens that see no image.
    forward(hidden, { cache, vision, length }) {
      if (!vision) return hidden;
      const start = cache.length, size = hidden.length / length;
      const seeing = Array.from({ length }, (_, t) => vision.seesAny(start + t));
      if (!seeing.some(Boolean)) return hidden;
      const [key, value] = vision.memory[this.layer];
      // A token that sees nothing may look at all: what it gets is multiplied by 0.
      const sees = (t, v) => !seeing[t] || vision.sees(start + t, v);
      const plus = (x, y, gate) =>
        x.map((a, i) => (seeing[Math.floor(i / size)] ? a + Math.tanh(gate[0]) * y[i] : a));
      const attended = this.cross_attn.forward(
        this.input_layernorm.forward(hidden), key, value, sees);
      hidden = plus(hidden, attended, this.cross_attn_attn_gate);
      const enlarged = this.mlp.forward(this.post_attention_layernorm.forward(hidden));
      return plus(hidden, enlarged, this.cross_attn_mlp_gate);
    }
  }

  function makeLayer(tensors, name, config, index) {
    const crosses = config.cross_attention_layers.includes(index);
    return new (crosses ? CrossAttentionLayer : DecoderLayer)(tensors, name, config, index);
  }

  // Keys and values of all images of a text, and who sees which.
  class VisionContext {
    constructor(layers, images) {  // images: of each, its projected tokens [V_i, D]
      const all = images.reduce(joined);
      this.memory = {};
      for (const layer of layers) this.memory[layer.layer] = layer.cross_attn.keysAndValues(all);
      const size = layers[0].cross_attn.k_proj.weight.shape[1];
      this.imageOf = images.flatMap((image, i) => Array(image.length / size).fill(i));
      this.ranges = images.map(() => [0, Infinity]);
    }

    sees(position, v) {
      const [start, end] = this.ranges[this.imageOf[v]];
      return start <= position && position < end;
    }

    seesAny(position) {
      return this.ranges.some(([start, end]) => start <= position && position < end);
    }
  }

  Object.assign(mllama, {
    visibleRanges, CrossAttention, CrossAttentionLayer, VisionContext, makeLayer,
  });
})();
