"use strict";
// What can be done to the model from outside, and undone. The model's own code knows of none:
// a switch puts a function of its own before a method of one object, or changes a number.
(() => {
  const { applyRopeInterleaved, attentionByHand, chooseCanvas, imageToTiles, joined, pasteAndCut,
    resize } = mllama;

  // Every gate of cross-attention: a name, the layer, and where its number stands.
  function gates(model) {
    return model.crossAttentionLayers.flatMap(layer => [
      { name: `attn${layer.layer}`, label: `layer ${layer.layer}, attention`, data: layer.cross_attn_attn_gate },
      { name: `mlp${layer.layer}`, label: `layer ${layer.layer}, MLP`, data: layer.cross_attn_mlp_gate },
    ]).map(gate => ({ ...gate, trained: gate.data[0] }));
  }

  // Put the same method before that of each object, or take it away again.
  function override(objects, method, own, on) {
    for (const object of objects) {
      if (on) object[method] = own;
      else delete object[method];
    }
  }

  const visionAttentions = model => [
    ...model.vision_model.transformer.layers, ...model.vision_model.global_transformer.layers,
  ].map(layer => layer.self_attn);

  const selfAttentions = model =>
    model.language_model.layers.flatMap(layer => layer.self_attn ?? []);

  const SWITCHES = {
    late: {
      label: "Vision states kept after their layers, as the best-known implementation does",
      vision: true,
      set(model, on) {
        const late = function (x, numReal, keep = []) {
          const kept = [];
          this.layers.forEach((layer, i) => {
            x = layer.forward(x, numReal);
            if (keep.includes(i)) kept.push(x);
          });
          return [x, kept];
        };
        override([model.vision_model.transformer], "forward", late, on);
      },
    },
    masked: {
      label: "Padding masked \u201cproperly\u201d: nothing in the vision encoder looks at it",
      vision: true,
      set(model, on) {
        const masked = function (x, numReal) {
          const [query, key, value] = [this.q_proj, this.k_proj, this.v_proj].map(p => p.forward(x));
          const end = numReal * this.heads * this.headDim;
          const attend = q => attentionByHand(
            q, key.subarray(0, end), value.subarray(0, end), this.headDim, this.heads, this.heads).output;
          return this.o_proj.forward(joined(attend(query.subarray(0, end)), attend(query.subarray(end))));
        };
        override(visionAttentions(model), "forward", masked, on);
      },
    },
    stretched: {
      label: "Tiles stretched: the picture fills its canvas, whatever its shape",
      vision: true,
      set() {},  // `toTiles` asks for it
    },
    rotary: {
      label: "Rotary layout swapped: neighbours are turned, not halves",
      set(model, on) {
        for (const attention of selfAttentions(model))
          attention.rotate = on ? applyRopeInterleaved : mllama.applyRope;
      },
    },
  };

  function toTiles(picture, tileSize, stretched) {
    if (!stretched) return imageToTiles(picture, tileSize);
    const canvas = chooseCanvas(picture.height, picture.width, tileSize);
    const [rows, columns] = canvas;
    return pasteAndCut(resize(picture, rows * tileSize, columns * tileSize), canvas, tileSize, 4);
  }

  function dropLayer(model, index, on) {
    override([model.language_model.layers[index]], "forward", hidden => hidden, on);
  }

  function setGate(gate, opening) {  // opening: the tanh of the gate; null as trained
    gate.data[0] = opening === null ? gate.trained : Math.atanh(opening);
  }

  // Make the model as `changes` say, whatever was done to it before:
  // { late, masked, stretched, rotary: true; drop: [index]; gates: { name: opening } }.
  function change(model, knownGates, changes) {
    for (const [name, { set }] of Object.entries(SWITCHES)) set(model, Boolean(changes[name]));
    model.language_model.layers.forEach((_, i) => dropLayer(model, i, (changes.drop ?? []).includes(i)));
    for (const gate of knownGates) setGate(gate, changes.gates?.[gate.name] ?? null);
  }

  Object.assign(mllama, { SWITCHES, gates, change, toTiles });
})();
