"use strict";
// Fetches the model, which tools/live.py has packed into scripts, when it is first needed.
(() => {
  mllama.pieces = [];

  // The pieces joined, unpacked: model.safetensors as Python reads it.
  async function unpack(text, headerBytes) {
    const packed = Uint8Array.from(atob(text), c => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    const planes = new Uint8Array(await new Response(stream).arrayBuffer());
    const file = new Uint8Array(planes.length), half = (planes.length - headerBytes) / 2;
    file.set(planes.subarray(0, headerBytes));
    for (let i = 0; i < half; i++) {
      file[headerBytes + 2 * i + 1] = planes[headerBytes + i];  // upper byte
      file[headerBytes + 2 * i] = planes[headerBytes + half + i];
    }
    return file.buffer;
  }

  // What is packed beside the weights, { config, tokenizer, pictures, ... }: fetched once.
  let index = null;
  async function loadIndex(fetchScript) {
    index ??= fetchScript("index.js").catch(error => {
      index = null;
      throw error;
    });
    await index;
    return mllama.packed;
  }

  // fetchScript(name) loads a script of the folder `packed`; progress(share) is told how far
  // the weights are. Returns { model, tokenizer, config }.
  async function load(fetchScript, progress = () => {}) {
    const { config, tokenizer, headerBytes, numPieces } = await loadIndex(fetchScript);
    progress(0);
    for (let i = 0; i < numPieces; i++) {
      if (!mllama.pieces[i]) await fetchScript(`${i}.js`);
      progress((i + 1) / numPieces);
    }
    const tensors = mllama.readSafetensors(await unpack(mllama.pieces.join(""), headerBytes));
    mllama.pieces = [];
    return {
      model: new mllama.Mllama(config, tensors), tokenizer: new mllama.Tokenizer(tokenizer), config,
    };
  }

  // One model for all of a page. What failed is tried again the next time.
  let loaded = null;
  function loadOnce(fetchScript, progress) {
    loaded ??= load(fetchScript, progress).catch(error => {
      loaded = null;
      throw error;
    });
    return loaded;
  }

  Object.assign(mllama, { load, loadIndex, loadOnce });
})();
