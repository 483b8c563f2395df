"use strict";
// Chapter 10: the loop that writes.
(() => {
  const { KVCache } = mllama;

  // The distribution [W] from which the next token is drawn.
  function probabilities(logits, { temperature = 1, topK = 0, topP = 1, minP = 0 } = {}) {
    const normalised = values => {
      const sum = values.reduce((a, b) => a + b, 0);
      return values.map(v => v / sum);
    };
    const most = logits.reduce((a, b) => Math.max(a, b));
    let probs = normalised(Array.from(logits, v => Math.exp((v - most) / Math.max(temperature, 1e-30))));
    const order = probs.map((_, id) => id).sort((a, b) => probs[b] - probs[a] || a - b);
    if (topK > 0 && topK < probs.length) {
      const smallest = probs[order[topK - 1]];
      probs = normalised(probs.map(p => (p < smallest ? 0 : p)));
    }
    if (topP < 1) {
      let before = 0;  // mass of all likelier tokens
      const kept = new Set(order.filter(id => {
        const fits = before <= topP;
        before += probs[id];
        return fits;
      }));
      probs = probs.map((p, id) => (kept.has(id) ? p : 0));
    }
    if (minP > 0) {
      const likeliest = Math.max(...probs);
      probs = probs.map(p => (p < minP * likeliest ? 0 : p));
    }
    return normalised(probs);
  }

  const argmax = logits => logits.reduce((best, v, id) => (v > logits[best] ? id : best), 0);

  // What a model keeps from one token to the next. Images are what `encodeImage` gave.
  class Session {
    constructor(model) {
      this.model = model;
      this.cache = new KVCache();
      this.vision = null;
    }

    // Take in more of a text; `tokens` are all of it, `images` too. The logits [W] that follow.
    extend(tokens, images) {
      this.vision = this.model.visionContext(tokens, images);
      return this.model.forward(tokens.slice(this.cache.length), this.cache, this.vision);
    }

    step(token) {
      return this.model.forward([token], this.cache, this.vision);
    }
  }

  // Write on after a prompt. Yields { id, logits }: the stop token is the last one yielded.
  function* generate(model, tokens, images, { maxNewTokens = 64, stopIds, pick = argmax, session } = {}) {
    session ??= new Session(model);
    let logits = session.extend(tokens, images);
    for (let n = 1; ; n++) {
      const id = pick(logits);
      yield { id, logits };
      if (stopIds.has(id) || n === maxNewTokens) return;
      logits = session.step(id);
    }
  }

  Object.assign(mllama, { probabilities, argmax, Session, generate });
})();
