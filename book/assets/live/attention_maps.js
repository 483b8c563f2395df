"use strict";
// Chapter 11: where the model looks while it answers.
(() => {
  // Keep what the cross-attention layers look at. Returns { latest, stop }: latest() is an
  // object from a layer's index to the weights [H, V] of the last token taken in.
  function watch(model) {
    const found = {}, watched = model.crossAttentionLayers;
    for (const { layer, cross_attn: attention } of watched) {
      attention.attend = function (...given) {
        const result = Object.getPrototypeOf(this).attend.apply(this, given);
        const last = this.config.num_attention_heads * (given[1].length / this.k_proj.weight.shape[0]);
        found[layer] = result.weights.slice(result.weights.length - last);
        return result;
      };
    }
    return {
      latest: () => ({ ...found }),
      stop: () => { for (const { cross_attn: attention } of watched) delete attention.attend; },
    };
  }

  // Weights [tiles, P] of one head, or the mean of several [H, tiles, P], laid out as the patches
  // lie: [rows·side, columns·side]. Class tokens have no place and are left out.
  function patchMap(weights, heads, [rows, columns], side) {
    const P = side * side + 1, perHead = rows * columns * P, wide = columns * side;
    const map = new Float32Array(rows * side * wide);
    for (let h = 0; h < heads; h++) for (let tile = 0; tile < rows * columns; tile++)
      for (let p = 0; p < side * side; p++) {
        const y = Math.floor(tile / columns) * side + Math.floor(p / side);
        const x = (tile % columns) * side + p % side;
        map[y * wide + x] += weights[h * perHead + tile * P + 1 + p] / heads;
      }
    return map;
  }

  Object.assign(mllama, { watch, patchMap });
})();
