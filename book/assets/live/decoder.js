"use strict";
// Chapter 4: the text decoder.
(() => {
  const { Linear, SelfAttention, add, silu } = mllama;

  class RMSNorm {
    constructor(tensors, name, eps) {
      this.weight = tensors.get(`${name}.weight`).data;
      this.eps = eps;
    }

    forward(x) {  // [T, D] to [T, D]
      const size = this.weight.length, y = new Float32Array(x.length);
      for (let from = 0; from < x.length; from += size) {
        let sum = 0;
        for (let i = 0; i < size; i++) sum += x[from + i] ** 2;
        const scale = 1 / Math.sqrt(sum / size + this.eps);
        for (let i = 0; i < size; i++) y[from + i] = x[from + i] * scale * this.weight[i];
      }
      return y;
    }
  }

  // SwiGLU: down(silu(gate(x)) * up(x)).
  class MLP {
    constructor(tensors, name) {
      for (const part of ["gate_proj", "up_proj", "down_proj"])
        this[part] = new Linear(tensors, `${name}.${part}`);
    }

    forward(x) {  // [T, D] to [T, D]
      const up = this.up_proj.forward(x);
      return this.down_proj.forward(this.gate_proj.forward(x).map((v, i) => silu(v) * up[i]));
    }
  }

  class DecoderLayer {
    constructor(tensors, name, config, layer) {
      const eps = config.rms_norm_eps;
      this.input_layernorm = new RMSNorm(tensors, `${name}.input_layernorm`, eps);
      this.self_attn = new SelfAttention(tensors, `${name}.self_attn`, config, layer);
      this.post_attention_layernorm = new RMSNorm(tensors, `${name}.post_attention_layernorm`, eps);
      this.mlp = new MLP(tensors, `${name}.mlp`);
    }

    forward(hidden, step) {  // [T, D] to [T, D]
      hidden = add(hidden, this.self_attn.forward(this.input_layernorm.forward(hidden), step));
      return add(hidden, this.mlp.forward(this.post_attention_layernorm.forward(hidden)));
    }
  }

  // Embedding, layers, norm and head. makeLayer(tensors, name, config, index): chapter 8's.
  class LanguageModel {
    constructor(tensors, name, config, makeLayer) {
      this.config = config;
      this.embedding = tensors.get(`${name}.model.embed_tokens.weight`).data;
      this.layers = Array.from({ length: config.num_hidden_layers }, (_, i) =>
        makeLayer(tensors, `${name}.model.layers.${i}`, config, i));
      this.norm = new RMSNorm(tensors, `${name}.model.norm`, config.rms_norm_eps);
      this.lm_head = new Linear(tensors, `${name}.lm_head`);
      this.frequencies = mllama.ropeFrequencies(config.head_dim, config.rope_theta);
    }

    // T new tokens, those before them in the cache, to the logits [W] that follow the last;
    // with `all`, [T, W].
    forward(tokens, cache, vision = null, all = false) {
      const size = this.config.hidden_size;
      let hidden = new Float32Array(tokens.length * size);
      tokens.forEach((id, t) =>
        hidden.set(this.embedding.subarray(id * size, (id + 1) * size), t * size));
      const positions = tokens.map((_, t) => cache.length + t);
      const angles = mllama.ropeCosSin(this.frequencies, positions);
      const step = { angles, cache, vision, length: tokens.length };
      for (const layer of this.layers) hidden = layer.forward(hidden, step);
      cache.length += tokens.length;
      const last = all ? hidden : hidden.subarray(hidden.length - size);
      return this.lm_head.forward(this.norm.forward(last));
    }
  }

  Object.assign(mllama, { RMSNorm, MLP, DecoderLayer, LanguageModel });
})();
