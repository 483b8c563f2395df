"use strict";
// Chapter 9: the file of weights, and the whole model.
(() => {
  const { LanguageModel, Linear, VisionContext, VisionModel, makeLayer, visibleRanges } = mllama;

  // Tensors of a safetensors file: 8 bytes length, JSON, numbers. bf16 is fp32's upper half.
  // Returns a Map from name to { shape, data }.
  function readSafetensors(buffer) {
    const length = Number(new DataView(buffer).getBigUint64(0, true));
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    const tensors = new Map();
    delete header.__metadata__;
    for (const [name, { dtype, shape, data_offsets: [begin, end] }] of Object.entries(header)) {
      if (dtype !== "BF16") throw new Error(`${name} is ${dtype}: expected BF16.`);
      const halves = new Uint16Array(buffer.slice(8 + length + begin, 8 + length + end));
      const bits = Uint32Array.from(halves, half => half << 16);
      tensors.set(name, { shape, data: new Float32Array(bits.buffer) });
    }
    return tensors;
  }

  class Mllama {
    constructor(config, tensors) {
      const text = { ...config.text_config };
      this.config = { text, vision: config.vision_config, imageTokenIndex: config.image_token_index };
      this.vision_model = new VisionModel(tensors, "vision_model", config.vision_config);
      this.multi_modal_projector = new Linear(tensors, "multi_modal_projector");
      this.language_model = new LanguageModel(tensors, "language_model", text, makeLayer);
    }

    get crossAttentionLayers() {
      return this.config.text.cross_attention_layers.map(i => this.language_model.layers[i]);
    }

    encodeImage(tiles) {  // to the tokens that cross-attention reads, [tiles·P, D]
      return this.multi_modal_projector.forward(this.vision_model.forward(tiles));
    }

    // What the tokens of a text see. images: of each image, what encodeImage gave.
    visionContext(tokens, images) {
      if (!images.length) return null;
      const context = new VisionContext(this.crossAttentionLayers, images);
      context.ranges = visibleRanges(tokens, this.config.imageTokenIndex);
      return context;
    }

    forward(tokens, cache, vision, all) {
      return this.language_model.forward(tokens, cache, vision, all);
    }
  }

  Object.assign(mllama, { readSafetensors, Mllama });
})();
