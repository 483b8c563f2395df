"use strict";
// Chapter 7: the global half of the vision encoder, and what the decoder will see.
(() => {
  const { LayerNorm, LocalVision, TileEmbedding, VisionLayer, VisionLayers, add, paddedLength } = mllama;

  // A vision layer whose two branches are each scaled by the tanh of a gate.
  class GatedVisionLayer extends VisionLayer {
    constructor(tensors, name, config) {
      super(tensors, name, config);
      this.gate_attn = tensors.get(`${name}.gate_attn`).data;
      this.gate_ffn = tensors.get(`${name}.gate_ffn`).data;
    }

    forward(x, numReal) {
      const attended = this.self_attn.forward(this.input_layernorm.forward(x), numReal);
      x = add(x, attended, Math.tanh(this.gate_attn[0]));
      const enlarged = this.mlp.forward(this.post_attention_layernorm.forward(x));
      return add(x, enlarged, Math.tanh(this.gate_ffn[0]));
    }
  }

  class VisionModel extends LocalVision {
    constructor(tensors, name, config) {
      super(tensors, name, config);
      this.layernorm_post = new LayerNorm(tensors, `${name}.layernorm_post`, config.norm_eps);
      this.post_tile_positional_embedding
        = new TileEmbedding(tensors, `${name}.post_tile_positional_embedding`);
      const layers = Array.from({ length: config.num_global_layers }, (_, i) =>
        new GatedVisionLayer(tensors, `${name}.global_transformer.layers.${i}`, config));
      this.global_transformer = new VisionLayers(layers);
    }

    // Tiles to the features of the valid tiles' tokens, [tiles·P, D·(1 + kept)].
    forward(tiles) {
      const { hidden_size: size, max_num_tiles: maxTiles } = this.config;
      const [local, states] = super.forward(tiles);
      const x = this.post_tile_positional_embedding.forward(
        this.layernorm_post.forward(local), tiles, maxTiles);
      const [last] = this.inLayers(this.global_transformer, x, tiles);
      const P = this.numPatches, padded = paddedLength(P);
      const features = new Float32Array(tiles.numTiles * P * size * (1 + states.length));
      let n = 0;
      for (let tile = 0; tile < tiles.numTiles; tile++) for (let p = 0; p < P; p++) {
        const from = (tile * padded + p) * size;
        for (let i = 0; i < size; i++) features[n++] = last[from + i];
        // The kept states are interleaved: channel 0 of each, then channel 1 of each, ...
        for (let i = 0; i < size; i++) for (const state of states) features[n++] = state[from + i];
      }
      return features;
    }
  }

  Object.assign(mllama, { GatedVisionLayer, VisionModel });
})();
