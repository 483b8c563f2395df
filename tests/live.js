"use strict";
// Runs the page's engine in Node for tests/test_live.py: a line of JSON in, a line out.
// Started as: node live.js <folder of the engine> <folder of the packed model>
const crypto = require("crypto"), fs = require("fs"), path = require("path");
const readline = require("readline"), vm = require("vm");

const [engine, packed] = process.argv.slice(2);
const run = file => vm.runInThisContext(fs.readFileSync(file, "utf8"), { filename: file });
run(path.join(engine, "start.js"));
for (const name of [...mllamaScripts.engine, "switches"]) run(path.join(engine, `${name}.js`));

const bytes = text => new Uint8Array(Buffer.from(text, "base64"));
const floats = array => Buffer.from(array.buffer, array.byteOffset, array.byteLength).toString("base64");
const picture = ({ rgb, height, width }) => ({ rgb: bytes(rgb), height, width });
let model, digest, gates, tokenizer, size;
const tokenizers = {};

const commands = {
  digest: () => digest,
  tokenizer: ({ path }) => {
    tokenizers.llama3 = new mllama.Tokenizer(fs.readFileSync(path, "utf8"));
    return true;
  },
  encode: ({ texts, which }) => texts.map(text => tokenizers[which].encode(text)),
  decode: ({ rows, which }) => rows.map(ids => tokenizers[which].decode(ids)),
  chat: ({ messages }) => tokenizer.encodeChat(messages),
  rope: ({ headDim, theta, positions, x, interleaved }) => {
    const angles = mllama.ropeCosSin(mllama.ropeFrequencies(headDim, theta), positions);
    const turned = (interleaved ? mllama.applyRopeInterleaved : mllama.applyRope)(
      Float32Array.from(x), headDim, angles);
    return floats(turned);
  },
  ranges: ({ rows, imageId }) => rows.map(row =>
    mllama.visibleRanges(row, imageId).map(([a, b]) => [a, b === Infinity ? null : b])),
  sizes: ({ sizes, tileSize }) => sizes.map(([height, width]) => {
    const canvas = mllama.chooseCanvas(height, width, tileSize);
    return [canvas, mllama.resizedSize(height, width, canvas, tileSize)];
  }),
  tiles: ({ image, tileSize }) => {
    const { pixelValues, aspectRatioId, canvas } = mllama.imageToTiles(picture(image), tileSize);
    return { pixelValues: floats(pixelValues), aspectRatioId, canvas };
  },
  probabilities: ({ logits, sampling }) => mllama.probabilities(Float32Array.from(logits), sampling),
  // The logits after a question, with the model as the page's switches make it.
  changed: ({ image, messages, changes }) => {
    mllama.change(model, gates, changes);
    const tiles = mllama.toTiles(picture(image), size, changes.stretched);
    const logits = new mllama.Session(model).extend(
      tokenizer.encodeChat(messages), [model.encodeImage(tiles)]);
    mllama.change(model, gates, {});
    return floats(logits);
  },
  // Several questions about one list of images, which are encoded once; of the first `keep` of them
  // the logits and looks too.
  answers: ({ images, questions, keep }) => {
    const encoded = images.map(image => model.encodeImage(mllama.imageToTiles(picture(image), size)));
    return questions.map((messages, number) => {
      const watched = number < keep ? mllama.watch(model) : null, tokens = tokenizer.encodeChat(messages);
      const result = { ids: [], logits: [], looks: [] };
      const options = { stopIds: tokenizer.stopIds, maxNewTokens: 32 };
      for (const { id, logits } of mllama.generate(model, tokens, encoded, options)) {
        result.ids.push(id);
        if (!watched) continue;
        result.logits.push(floats(logits));
        const looks = Object.entries(watched.latest()).map(([layer, w]) => [layer, floats(w)]);
        result.looks.push(Object.fromEntries(looks));
      }
      watched?.stop();
      return { ...result, text: tokenizer.decode(result.ids) };
    });
  },
};

(async () => {
  const started = process.hrtime.bigint();
  const read = mllama.readSafetensors;
  mllama.readSafetensors = buffer => {
    digest = crypto.createHash("sha256").update(Buffer.from(buffer)).digest("hex");
    return read(buffer);
  };
  ({ model, tokenizer } = await mllama.load(async name => run(path.join(packed, name))));
  tokenizers.small = tokenizer;
  gates = mllama.gates(model);
  size = model.config.vision.image_size;
  console.log(JSON.stringify({ milliseconds: Number(process.hrtime.bigint() - started) / 1e6 }));
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const { command, ...given } = JSON.parse(line);
    console.log(JSON.stringify(commands[command](given)));
  }
})();
