"use strict";
// Chapter 1: text to token ids and back.
(() => {
  // Llama 3's pattern. JavaScript has no (?i:…) everywhere, and its \s is not Unicode's.
  const SPLIT_PATTERN = new RegExp([
    "'(?:[sS\u017f]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])",
    "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+",
    "\\p{N}{1,3}",
    " ?[^\\p{White_Space}\\p{L}\\p{N}]+[\\r\\n]*",
    "\\p{White_Space}*[\\r\\n]+",
    "\\p{White_Space}+(?!\\P{White_Space})",
    "\\p{White_Space}+",
  ].join("|"), "gu");

  const NAMED_SPECIAL_TOKENS = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>", "<|step_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>",
    "<|image|>",
  ];
  const NUM_SPECIAL_TOKENS = 256;

  // Split a word into tokens by merging neighbours, lowest rank first. Words and tokens are
  // strings of one character a byte; ranks is a Map from a token to its rank.
  function bpeMerge(word, ranks) {
    const parts = [...word];
    while (parts.length > 1) {
      const candidates = parts.slice(1).map((part, i) => ranks.get(parts[i] + part) ?? Infinity);
      const lowest = Math.min(...candidates);
      if (lowest === Infinity) break;
      const i = candidates.indexOf(lowest);
      parts.splice(i, 2, parts[i] + parts[i + 1]);
    }
    return parts.map(part => ranks.get(part));
  }

  class Tokenizer {
    constructor(file) {  // the text of tokenizer.model: base64 of a token, a space, its rank
      const lines = file.trim().split("\n").map(line => line.split(" "));
      this.ranks = new Map(lines.map(([token, rank]) => [atob(token), Number(rank)]));
      this.tokens = [...this.ranks.keys()].sort((a, b) => this.ranks.get(a) - this.ranks.get(b));
      this.vocabSize = this.ranks.size + NUM_SPECIAL_TOKENS;
      this.imageId = this.vocabSize;  // the model's id of an image, not the tokenizer's
      this.special = {};
      NAMED_SPECIAL_TOKENS.forEach((name, i) => { this.special[name] = this.ranks.size + i; });
      const ends = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"];
      this.stopIds = new Set(ends.map(name => this.special[name]));
    }

    words(text) {
      return text.match(SPLIT_PATTERN) ?? [];
    }

    encode(text) {  // never yields a special token, whatever is spelled in the text
      return this.words(text).flatMap(word => {
        const bytes = String.fromCharCode(...new TextEncoder().encode(word));
        return this.ranks.has(bytes) ? [this.ranks.get(bytes)] : bpeMerge(bytes, this.ranks);
      });
    }

    // A function from an id to text, which keeps the first half of a character for later.
    decoder() {
      const utf8 = new TextDecoder();
      return id => {
        const bytes = Uint8Array.from(this.tokens[id] ?? "", c => c.charCodeAt(0));
        return utf8.decode(bytes, { stream: true });
      };
    }

    decode(ids) {
      const next = this.decoder();
      return ids.map(next).join("");
    }

    encodeHeader(role) {
      return [
        this.special["<|start_header_id|>"], ...this.encode(role),
        this.special["<|end_header_id|>"], ...this.encode("\n\n"),
      ];
    }

    // A conversation up to the header of the answer: messages { role, content }, content an
    // array of strings and of null, which stands for an image.
    encodeChat(messages) {
      const ids = [this.special["<|begin_of_text|>"]];
      for (const { role, content } of messages) {
        ids.push(...this.encodeHeader(role));
        for (const part of content) ids.push(...(part === null ? [this.imageId] : this.encode(part)));
        ids.push(this.special["<|eot_id|>"]);
      }
      return [...ids, ...this.encodeHeader("assistant")];
    }
  }

  Object.assign(mllama, { SPLIT_PATTERN, bpeMerge, Tokenizer });
})();
