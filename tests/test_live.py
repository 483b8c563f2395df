"""The page's engine, plain JavaScript in book/assets/live, against the package it mirrors."""

import base64
import hashlib
import json
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

import live
import reference
from mllama_lite import image_to_tiles, load
from mllama_lite.attention_maps import look
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.cross_attention import visible_ranges
from mllama_lite.generation import Sampling, probabilities
from mllama_lite.rope import (
    apply_rope,
    apply_rope_interleaved,
    rope_cos_sin,
    rope_frequencies,
)
from mllama_lite.small_model.questions import WORDINGS, ask
from mllama_lite.small_model.scenes import draw_scene, load_masks
from mllama_lite.tiles import canvases, choose_canvas, resized_size
from mllama_lite.tokenizer import ImagePart
from node import Node
from test_tokenizer import fuzzed_strings, real_strings

LIMIT = 6_000_000  # bytes of engine and weights together


class Engine(Node):
    """The page's engine with its weights."""

    def __init__(self, packed):
        super().__init__("live.js", live.LIVE, packed)
        self.milliseconds = json.loads(self.process.stdout.readline())["milliseconds"]


@pytest.fixture(scope="module")
def packed(live_site):
    return live_site / "live" / "packed"


@pytest.fixture(scope="module")
def engine(packed):
    engine = Engine(packed)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def vlm():
    return load(device="cpu", dtype="float32")


def floats(text):
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32)


def sent(image):
    rgb = base64.b64encode(image.convert("RGB").tobytes()).decode()
    return {"rgb": rgb, "height": image.height, "width": image.width}


def asked(text, images=1):
    return [{"role": "user", "content": [None] * images + [text]}]


@pytest.fixture(scope="module")
def scenes():
    """200 pictures, 25 for each canvas, with 5 questions each: every kind, both wordings."""
    rng, masks = np.random.default_rng([11, 1]), load_masks("validation")
    kinds, found = list(WORDINGS), []
    for number in range(200):
        scene = draw_scene(rng, masks, canvas=canvases()[number % 8])
        questions = []
        while len(questions) < 5:
            kind = kinds[int(rng.integers(len(kinds)))]
            question = ask(rng, scene, kind, bool(rng.integers(2)))
            if question:
                questions.append(question)
        found.append((scene.image, questions))
    assert {q.kind for _, questions in found for q in questions} == set(kinds)
    return found


def test_engine_and_weights_are_light_and_ask_no_host(packed):
    engine = [path for path in live.LIVE.glob("*.js")]
    assert len(engine) > 10
    weights = [p for p in packed.glob("*.js") if p.name != "index.js"]
    size = sum(path.stat().st_size for path in (*engine, *weights))
    assert size < LIMIT
    for path in engine:
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"https?://(?!www\.w3\.org/2000/svg\")|(?<!\")\bimport\b\s*[({\"']|fetch\(",
            text,
        ), path.name


def test_what_is_packed_is_the_file_that_ships(engine):
    file = (find_folder() / "model.safetensors").read_bytes()
    assert engine("digest") == hashlib.sha256(file).hexdigest()


def test_tokenizer_of_the_page(engine, vlm, proof):
    from mllama_lite.tokenizer import Tokenizer

    strings = random.Random(1).sample(real_strings(), 5000)
    strings += list(fuzzed_strings(5000, 1))
    wrong = 0
    big = Tokenizer.from_file(reference.tokenizer_path())
    for name, tokenizer in (("small", vlm.tokenizer), ("llama3", big)):
        if name == "llama3":
            engine("tokenizer", path=str(reference.tokenizer_path()))
        got = engine("encode", texts=strings, which=name)
        want = [tokenizer.encode(text) for text in strings]
        wrong += sum(a != b for a, b in zip(got, want, strict=True))
        back = engine("decode", rows=want[:500], which=name)
        wrong += sum(a != tokenizer.decode(b) for a, b in zip(back, want[:500]))
    inputs = "10,000 strings each with its own vocabulary and Llama 3's"
    proof("Page's engine: tokenizer", "the package", inputs, wrong, 0)


def test_chat_format_of_the_page(engine, vlm):
    turns = [
        {"role": "user", "content": [None, None, "What is <|eot_id|> here?"]},
        {"role": "assistant", "content": ["red 4"]},
        {"role": "user", "content": [None, "And here?"]},
    ]
    messages = [
        {**turn, "content": [ImagePart() if p is None else p for p in turn["content"]]}
        for turn in turns
    ]
    want, _ = vlm.tokenizer.encode_chat(messages)
    assert engine("chat", messages=turns) == want


def test_who_sees_which_image_on_the_page(engine):
    rng = random.Random(2)
    rows = [
        [rng.choice([7, 7, 9]) for _ in range(rng.randrange(1, 12))]
        for _ in range(2000)
    ]
    got = engine("ranges", rows=rows, imageId=9)
    assert [[tuple(r) for r in row] for row in got] == [
        visible_ranges(r, 9) for r in rows
    ]


@pytest.mark.parametrize("interleaved", [False, True])
def test_rope_of_the_page(engine, interleaved, proof):
    x = torch.randn(6, 3, 8)  # [T, H, E]
    positions = [0, 1, 2, 100, 1000, 100000]
    got = engine(
        "rope",
        headDim=8,
        theta=500000.0,
        positions=positions,
        x=x.flatten().tolist(),
        interleaved=interleaved,
    )
    cos, sin = rope_cos_sin(rope_frequencies(8), torch.tensor(positions))
    turn = apply_rope_interleaved if interleaved else apply_rope
    want = turn(x.transpose(0, 1)[None], cos, sin)[0].transpose(0, 1)
    difference = (floats(got) - want.flatten()).abs().max().item()
    name = f"Page's engine: RoPE, {'interleaved' if interleaved else 'half-split'}"
    proof(name, "the package", "6 positions to 100,000", difference, 1e-4)


def test_tiles_of_the_page(engine, proof):
    rng = random.Random(3)
    sizes = [[rng.randrange(1, 700), rng.randrange(1, 700)] for _ in range(2000)]
    sizes += [[1, 5000], [5000, 1], [560, 560], [561, 560], [56, 57], [65535, 3]]
    want = []
    for height, width in sizes:
        canvas = choose_canvas(height, width, 56)
        want.append([[*canvas], [*resized_size(height, width, canvas, 56)]])
    assert engine("sizes", sizes=sizes, tileSize=56) == want
    worst = 0.0
    for number in range(120):
        height, width = rng.randrange(1, 400), rng.randrange(1, 400)
        noise = np.random.RandomState(number).randint(0, 256, (height, width, 3))
        image = Image.fromarray(noise.astype(np.uint8))
        got = engine("tiles", image=sent(image), tileSize=56)
        tiles = image_to_tiles(image, 56)
        assert got["aspectRatioId"] == tiles.aspect_ratio_id
        difference = floats(got["pixelValues"]) - tiles.pixel_values.flatten()
        worst = max(worst, difference.abs().max().item())
    # One level of 255 would be .014: the resampling is Pillow's to the bit.
    inputs = "noise of 120 sizes, 1 to 399 pixels a side"
    proof("Page's engine: pixels of tiles", "Pillow, the package", inputs, worst, 1e-6)


def test_sampling_of_the_page(engine, proof):
    worst = 0.0
    for seed in range(40):
        torch.manual_seed(seed)
        logits = torch.randn(1, 60) * 3
        for names in (
            {"temperature": 0.7},
            {"temperature": 1.3, "top_k": 5},
            {"temperature": 1.0, "top_p": 0.8},
            {"temperature": 2.0, "min_p": 0.2},
            {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "min_p": 0.05},
        ):
            camel = {
                re.sub("_(.)", lambda m: m[1].upper(), k): v for k, v in names.items()
            }
            got = engine("probabilities", logits=logits[0].tolist(), sampling=camel)
            want = probabilities(logits, Sampling(**names))[0]
            worst = max(worst, (torch.tensor(got) - want).abs().max().item())
    proof(
        "Page's engine: sampling",
        "the package",
        "40 distributions, 5 settings",
        worst,
        1e-6,
    )


def test_answers_and_logits_of_the_page(engine, vlm, scenes, proof):
    """1,000 answers; the logits of every token of 200 of them, one for each picture."""
    worst, differ = 0.0, 0

    def prompt(text):
        return vlm.tokenizer.encode_chat(
            [{"role": "user", "content": [ImagePart(), text]}]
        )[0]

    for first in range(0, len(scenes), 8):
        some = scenes[first : first + 8]
        rows = [[prompt(one.text) for one in questions] for _, questions in some]
        images = [[image] for image, questions in some for _ in questions]
        want_ids = iter(vlm.generate_batch(sum(rows, []), images, 32))
        for (image, questions), own in zip(some, rows):
            messages = [asked(question.text) for question in questions]
            got = engine("answers", images=[sent(image)], questions=messages, keep=1)
            ids = [next(want_ids) for _ in questions]
            differ += sum(a["ids"] != b for a, b in zip(got, ids, strict=True))
            want = vlm.logits(own[0] + ids[0], [image])[len(own[0]) - 1 : -1]
            logits = torch.stack([floats(step) for step in got[0]["logits"]])
            worst = max(worst, (logits - want).abs().max().item())
    inputs = "200 pictures, 25 for each canvas, every kind of question"
    proof("Page's engine: logits", "the package, fp32", inputs, worst, 1e-4)
    proof("Page's engine: answers", "the package, fp32", "1,000 questions", differ, 0)


def test_several_images_on_the_page(engine, vlm, scenes, proof):
    """Two and three images in a question, and a second turn with an image of its own."""
    worst = 0.0
    for first in range(0, 24, 3):
        images = [image for image, _ in scenes[first : first + 3]]
        turns = asked("What is in the pictures?", 2) + [
            {"role": "assistant", "content": ["nothing"]},
            {"role": "user", "content": [None, "What is in the picture?"]},
        ]
        (got,) = engine(
            "answers", images=[*map(sent, images)], questions=[turns], keep=1
        )
        tokens = engine("chat", messages=turns)
        want = vlm.logits(tokens + got["ids"], images)[len(tokens) - 1 : -1]
        logits = torch.stack([floats(step) for step in got["logits"]])
        worst = max(worst, (logits - want).abs().max().item())
    inputs = "8 conversations with three images"
    proof("Page's engine: several images", "the package, fp32", inputs, worst, 1e-4)


def test_looks_of_the_page(engine, vlm, scenes, proof):
    worst = 0.0
    for image, questions in scenes[:16]:
        text = questions[0].text
        (got,) = engine(
            "answers", images=[sent(image)], questions=[asked(text)], keep=1
        )
        looks = look(vlm, text, image)
        shown = [
            n for n, id in enumerate(got["ids"]) if not vlm.tokenizer.is_special(id)
        ]
        for layer, weights in looks.weights[0].items():
            mine = torch.stack([floats(got["looks"][n][str(layer)]) for n in shown])
            worst = max(worst, (mine - weights.flatten(1)).abs().max().item())
    inputs = "16 answers, all layers and heads"
    proof("Page's engine: where it looks", "the package", inputs, worst, 1e-4)


def kept_late(self, x, num_real, keep=()):
    """`VisionLayers.forward` with the states kept after their layers."""
    kept = []
    for i, layer in enumerate(self.layers):
        x = layer(x, num_real)
        if i in keep:
            kept.append(x)
    return x, kept


def padding_unseen(self, x, num_real):
    """`VisionAttention.forward` in which nothing looks at padding."""
    query, key, value = (
        p(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        for p in (self.q_proj, self.k_proj, self.v_proj)
    )
    real = key[:, :, :num_real], value[:, :, :num_real]
    output = torch.nn.functional.scaled_dot_product_attention(query, *real)
    return self.o_proj(output.transpose(1, 2).flatten(2))


def test_switches_of_the_page(engine, vlm, scenes, proof, monkeypatch):
    """Each changes the logits, and as the same change of the package does."""
    layers = vlm.model.language_model.model.layers

    def filled(image):
        rows, columns = choose_canvas(image.height, image.width, 56)
        return image.resize((56 * columns, 56 * rows), Image.Resampling.BILINEAR)

    methods = {
        "late": ("mllama_lite.local_vision.VisionLayers.forward", kept_late),
        "masked": ("mllama_lite.local_vision.VisionAttention.forward", padding_unseen),
        "rotary": ("mllama_lite.attention.apply_rope", apply_rope_interleaved),
    }
    every = [{name: True} for name in (*methods, "stretched")]
    every += [{"drop": [i]} for i in range(7)] + [{"drop": [2, 5]}]
    every += [
        {"gates": {f"{part}{i}": 0.9}} for i in (1, 3, 5) for part in ("attn", "mlp")
    ]
    every += [{"gates": {"attn1": 0, "mlp5": -0.5}, "late": True}]
    worst, least = 0.0, 1e9
    for number, changes in enumerate(every):
        image, questions = scenes[3 * number + 1]  # of each canvas
        text, shown = questions[0].text, image
        row = vlm.tokenizer.encode_chat(
            [{"role": "user", "content": [ImagePart(), text]}]
        )[0]
        plain = vlm.logits(row, [image])[-1]
        with monkeypatch.context() as patch:
            for name in changes.keys() & methods.keys():
                patch.setattr(*methods[name])
            if "stretched" in changes:
                shown = filled(image)
            for index in changes.get("drop", ()):
                patch.setattr(layers[index], "forward", lambda hidden, step: hidden)
            for name, opening in changes.get("gates", {}).items():
                gate = f"cross_attn_{name[:-1]}_gate"
                value = torch.tensor([opening]).atanh()
                patch.setattr(getattr(layers[int(name[-1])], gate), "data", value)
            want = vlm.logits(row, [shown])[-1]
        given = {"image": sent(image), "messages": asked(text), "changes": changes}
        got = floats(engine("changed", **given))
        worst = max(worst, (got - want).abs().max().item())
        least = min(least, (want - plain).abs().max().item())
    assert least > 1e-2
    # And the model is as it was.
    got = floats(engine("changed", **given | {"changes": {}}))
    assert (got - plain).abs().max() < 1e-4
    inputs = f"{len(every)} changes of model or picture"
    proof("Page's engine: switches", "the package, changed", inputs, worst, 1e-4)
