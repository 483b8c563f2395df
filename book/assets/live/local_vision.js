"use strict";
// Chapter 6: the local half of the vision encoder. N is 1: one picture at a time.
(() => {
  const { Linear, LayerNorm, add, attentionByHand, gelu, joined } = mllama;

  // A gated vector for each tile's place on its canvas, added to all its tokens.
  class TileEmbedding {
    constructor(tensors, name) {
      this.embedding = tensors.get(`${name}.embedding.weight`);  // [canvases + 1, K·D]
      this.gate = tensors.get(`${name}.gate`).data;
    }

    forward(x, { aspectRatioId, numTiles }, maxTiles) {  // x [K, P, D], any P
      const row = this.embedding.shape[1], size = row / maxTiles, perTile = x.length / maxTiles;
      const gate = Math.tanh(this.gate[0]), places = this.embedding.data;
      return x.map((value, i) => {
        const tile = Math.floor(i / perTile);
        if (tile >= numTiles) return value;
        return value + gate * places[aspectRatioId * row + tile * size + i % size];
      });
    }
  }

  // Position inside a tile for every tile, and on the canvas for the valid ones.
  class PositionEmbedding {
    constructor(tensors, name) {
      this.embedding = tensors.get(`${name}.embedding`).data;  // [P, D]
      this.tile_embedding = tensors.get(`${name}.tile_embedding.weight`);  // [canvases + 1, K·P·D]
      this.gate = tensors.get(`${name}.gate`).data;
    }

    forward(x, { aspectRatioId, numTiles }) {  // x [K, P, D]
      const perTile = this.embedding.length, row = this.tile_embedding.shape[1];
      const gate = Math.tanh(this.gate[0]), places = this.tile_embedding.data;
      return x.map((value, i) => {
        const inside = value + (1 - gate) * this.embedding[i % perTile];
        return i >= numTiles * perTile ? inside : inside + gate * places[aspectRatioId * row + i];
      });
    }
  }

  class VisionAttention {
    constructor(tensors, name, config) {
      this.heads = config.attention_heads;
      this.headDim = config.hidden_size / config.attention_heads;
      for (const part of ["q_proj", "k_proj", "v_proj", "o_proj"])
        this[part] = new Linear(tensors, `${name}.${part}`);
    }

    // x [padded V, D], the numReal real tokens first. Padding does not look at padding; real
    // tokens look at it, as in Meta's code: so the queries are taken in two parts.
    forward(x, numReal) {
      const [query, key, value] = [this.q_proj, this.k_proj, this.v_proj].map(p => p.forward(x));
      const end = numReal * this.heads * this.headDim;
      const attend = (q, k, v) =>
        attentionByHand(q, k, v, this.headDim, this.heads, this.heads).output;
      const real = attend(query.subarray(0, end), key, value);
      const rest = attend(query.subarray(end), key.subarray(0, end), value.subarray(0, end));
      return this.o_proj.forward(joined(real, rest));
    }
  }

  class VisionMLP {
    constructor(tensors, name) {
      this.fc1 = new Linear(tensors, `${name}.fc1`);
      this.fc2 = new Linear(tensors, `${name}.fc2`);
    }

    forward(x) {  // [V, D] to [V, D]
      return this.fc2.forward(this.fc1.forward(x).map(gelu));
    }
  }

  class VisionLayer {
    constructor(tensors, name, config) {
      const eps = config.norm_eps;
      this.input_layernorm = new LayerNorm(tensors, `${name}.input_layernorm`, eps);
      this.self_attn = new VisionAttention(tensors, `${name}.self_attn`, config);
      this.post_attention_layernorm = new LayerNorm(tensors, `${name}.post_attention_layernorm`, eps);
      this.mlp = new VisionMLP(tensors, `${name}.mlp`);
    }

    forward(x, numReal) {  // [padded V, D], real tokens first
      x = add(x, this.self_attn.forward(this.input_layernorm.forward(x), numReal));
      return add(x, this.mlp.forward(this.post_attention_layernorm.forward(x)));
    }
  }

  class VisionLayers {
    constructor(layers) {
      this.layers = layers;
    }

    // Run all layers; keep the inputs of those in `keep`.
    forward(x, numReal, keep = []) {
      const kept = [];
      this.layers.forEach((layer, i) => {
        if (keep.includes(i)) kept.push(x);
        x = layer.forward(x, numReal);
      });
      return [x, kept];
    }
  }

  const paddedLength = numPatches => Math.ceil(numPatches / 8) * 8;

  // Places of an image's tokens [K, padded P]: the real ones first, then the padding.
  function realTokensFirst(numTiles, maxTiles, numPatches) {
    const padded = paddedLength(numPatches), real = [], padding = [];
    for (let i = 0; i < maxTiles * padded; i++) {
      const isReal = i < numTiles * padded && i % padded < numPatches;
      (isReal ? real : padding).push(i);
    }
    return [...real, ...padding];
  }

  // Rows of x [V, D] in another order; `back`: put them back where they were.
  function reorder(x, order, size, back = false) {
    const y = new Float32Array(x.length);
    order.forEach((place, n) => {
      const [from, to] = back ? [n, place] : [place, n];
      y.set(x.subarray(from * size, (from + 1) * size), to * size);
    });
    return y;
  }

  // Patches, embeddings and the local layers.
  class LocalVision {
    constructor(tensors, name, config) {
      this.config = config;
      this.side = config.image_size / config.patch_size;
      this.numPatches = this.side ** 2 + 1;
      // A convolution whose steps are as long as its filter is one linear map of every patch.
      this.patch_embedding = new Linear(tensors, `${name}.patch_embedding`);
      this.class_embedding = tensors.get(`${name}.class_embedding`).data;
      this.pre_tile_positional_embedding
        = new TileEmbedding(tensors, `${name}.pre_tile_positional_embedding`);
      this.gated_positional_embedding
        = new PositionEmbedding(tensors, `${name}.gated_positional_embedding`);
      this.layernorm_pre = new LayerNorm(tensors, `${name}.layernorm_pre`, config.norm_eps);
      const layers = Array.from({ length: config.num_hidden_layers }, (_, i) =>
        new VisionLayer(tensors, `${name}.transformer.layers.${i}`, config));
      this.transformer = new VisionLayers(layers);
    }

    // Pixels [K, 3, S, S] to patches [K·(P - 1), 3·14·14].
    cut(pixelValues) {
      const { image_size: size, patch_size: patch, max_num_tiles: maxTiles } = this.config;
      const patches = new Float32Array(pixelValues.length);
      let n = 0;
      for (let tile = 0; tile < maxTiles; tile++)
        for (let row = 0; row < size; row += patch) for (let column = 0; column < size; column += patch)
          for (let c = 0; c < 3; c++) for (let y = row; y < row + patch; y++) {
            const from = ((tile * 3 + c) * size + y) * size + column;
            patches.set(pixelValues.subarray(from, from + patch), n);
            n += patch;
          }
      return patches;
    }

    // Tiles to the tokens that enter the first layer, [K, padded P, D].
    embed(tiles) {
      const { hidden_size: size, max_num_tiles: maxTiles } = this.config, P = this.numPatches;
      const patches = this.pre_tile_positional_embedding.forward(
        this.patch_embedding.forward(this.cut(tiles.pixelValues)), tiles, maxTiles);
      let x = new Float32Array(maxTiles * P * size);
      for (let tile = 0; tile < maxTiles; tile++) {
        x.set(this.class_embedding, tile * P * size);
        const own = patches.subarray(tile * (P - 1) * size, (tile + 1) * (P - 1) * size);
        x.set(own, (tile * P + 1) * size);
      }
      x = this.layernorm_pre.forward(this.gated_positional_embedding.forward(x, tiles));
      const padded = paddedLength(P), all = new Float32Array(maxTiles * padded * size);
      for (let tile = 0; tile < maxTiles; tile++)
        all.set(x.subarray(tile * P * size, (tile + 1) * P * size), tile * padded * size);
      return all;
    }

    // Run a stack of layers over x [K, padded P, D]: [x, kept inputs].
    inLayers(layers, x, { numTiles }, keep = []) {
      const { hidden_size: size, max_num_tiles: maxTiles } = this.config;
      const order = realTokensFirst(numTiles, maxTiles, this.numPatches);
      const [last, kept] = layers.forward(
        reorder(x, order, size), numTiles * this.numPatches, keep);
      return [reorder(last, order, size, true), kept.map(y => reorder(y, order, size, true))];
    }

    forward(tiles) {  // [last state, kept states], each [K, padded P, D]
      const keep = this.config.intermediate_layers_indices;
      return this.inLayers(this.transformer, this.embed(tiles), tiles, keep);
    }
  }

  Object.assign(mllama, {
    TileEmbedding, PositionEmbedding, VisionAttention, VisionMLP, VisionLayer, VisionLayers,
    LocalVision, paddedLength, realTokensFirst, reorder,
  });
})();
