"""Fine-tuning: what a sample teaches, what a step computes, and that it can be killed.

Run as a program, this file is what some tests need: a process that has imported
everything, trains in forks of itself, and can kill them without losing what it knows.
"""

import csv
import json
import math
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mllama_lite import InputError, cli
from mllama_lite.adapters import data as samples
from mllama_lite.adapters.data import (
    answer_logits,
    encode_sample,
    hold_out,
    indices_of_step,
    make_batch,
    read_samples,
)
from mllama_lite.adapters.finetune import finetune
from mllama_lite.adapters.lora import add_adapter, lora_layers, remove_adapters
from mllama_lite.adapters.peft_files import load_adapter
from mllama_lite.adapters.processes import Processes, training_dtype
from mllama_lite.adapters.recipe import Recipe, learning_rate
from mllama_lite.adapters.training import COLUMNS, Trainer, recomputed
from mllama_lite.checkpoints.hub import find_folder, find_tokenizer
from mllama_lite.cross_attention import VisionCache
from mllama_lite.decoder import TextConfig
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import Mllama, MllamaConfig
from mllama_lite.tokenizer import ImagePart
from mllama_lite.vlm import VLM, load

module = sys.modules["mllama_lite.adapters.finetune"]
TOKENIZER = find_tokenizer(find_folder())


def tiny(seed=0):
    """A VLM of every kind of layer, all parameters random, that takes no time."""
    text = TextConfig(
        vocab_size=TOKENIZER.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rope_theta=10000.0,
        rope_scaling=None,
        max_position_embeddings=128,
        cross_attention_layers=(1, 3),
    )
    vision = VisionConfig(
        hidden_size=16,
        attention_heads=2,
        intermediate_size=24,
        num_hidden_layers=2,
        num_global_layers=1,
        image_size=28,
        intermediate_layers_indices=(0, 1),
    )
    model = Mllama(MllamaConfig(text, vision, TOKENIZER.image_id))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            if parameter.numel() == 1:
                parameter.fill_(0.7)
    return VLM(model.eval(), TOKENIZER)


def turn(user, assistant):
    return [
        {"role": "user", "content": user},
        {"role": "assistant", "content": assistant},
    ]


SYSTEM = {"role": "system", "content": "Count the things."}
LINES = [
    {"file_name": "a.png", "question": "Which digit is this?", "answer": "4"},
    {"file_name": "b.png", "question": "Why?", "answer": "red 4, blue star, a circle"},
    {"question": "What is left of it?", "answer": "nothing"},
    {"file_names": ["a.png", "c.png"], "question": "Which one?", "answer": "left"},
    {
        "file_name": "sub/d.png",
        "messages": [SYSTEM, *turn("How many?", "2"), *turn("What?", "a red\n\nstar")],
    },
    {"file_name": None, "messages": [SYSTEM, *turn("Sure?", "yes yes yes yes")]},
    {"file_names": ["b.png"], "question": "éß 漢?", "answer": "ünï"},
    {"file_names": ["c.png", "sub/d.png", "a.png"], "messages": turn("All?", "no")},
]
SIZES = {"a.png": (28, 28), "b.png": (56, 28), "c.png": (25, 80), "sub/d.png": (50, 56)}


def write_folder(folder, lines=LINES):
    """A data folder: lines are objects, or bytes as they are."""
    rng = np.random.default_rng(0)
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for name, (width, height) in SIZES.items():
        noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / name)
    raw = [x if isinstance(x, bytes) else json.dumps(x).encode() for x in lines]
    (folder / "metadata.jsonl").write_bytes(b"\n".join(raw) + b"\n")
    return folder


def read(folder, vlm, **options):
    return read_samples(folder, TOKENIZER, vlm.config, report=None, **options)[0]


@pytest.fixture(autouse=True)
def _gradients():
    with torch.enable_grad():
        yield


@pytest.fixture
def no_matplotlib(monkeypatch):
    """Training needs none, and drawing takes longer than all the rest."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture
def data(tmp_path):
    return write_folder(tmp_path / "data")


def adapted(targets="all", seed=0, dropout=0.0):
    """A tiny VLM with an adapter that is not 0 any more."""
    vlm = tiny(seed)
    parameters = add_adapter(vlm.model, targets, 4, 8, dropout, report=None)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return vlm


def trainer_of(data, recipe, vlm=None):
    vlm = vlm or adapted()
    return Trainer(vlm, read(data, vlm), [], recipe, Processes("cpu"))


def gradients(vlm, batches, weight=1.0):
    """Gradients of a weighted sum of losses: dict from name to tensor."""
    named = {n: p for n, p in vlm.model.named_parameters() if p.requires_grad}
    total = sum(
        F.cross_entropy(*answer_logits(vlm.model, batch), reduction="sum")
        for batch in batches
    )
    found = torch.autograd.grad(total * weight, [*named.values()], allow_unused=True)
    zeros = {n: torch.zeros_like(p) for n, p in named.items()}
    return {n: zeros[n] if g is None else g for n, g in zip(named, found)}


def apart(a, b):
    """Largest difference between two dicts of tensors, as a share of the largest."""
    assert a.keys() == b.keys()
    largest = max(t.abs().max().item() for t in b.values())
    return max((a[n] - b[n]).abs().max().item() for n in a) / largest


# Samples and batches


def test_labels_are_the_answers_and_their_ends(data):
    """By the characters of the decoded text, without the code that encodes messages."""
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    for sample, line in zip(read(data, tiny()), LINES, strict=True):
        messages = line.get("messages") or turn(line["question"], line["answer"])
        names = line.get("file_names") or [line.get("file_name")]
        images = "<|image|>" * len([name for name in names if name])
        text = "<|begin_of_text|>"
        for message in messages:
            text += header.format(message["role"])
            if message["role"] == "user":
                text, images = text + images, ""
            text += message["content"] + "<|eot_id|>"
        pieces = [TOKENIZER.token_bytes(id) for id in sample.tokens]
        assert b"".join(pieces).decode() == text
        pattern = re.escape(header.format("assistant")) + r"(.*?<\|eot_id\|>)"
        spans = [m.span(1) for m in re.finditer(pattern, text, re.S)]
        spans = [[len(text[:edge].encode()) for edge in span] for span in spans]
        assert len(spans) == sum(m["role"] == "assistant" for m in messages)
        ends = np.cumsum([len(piece) for piece in pieces])
        for i, label in enumerate(sample.labels[:-1]):
            begin, end = ends[i], ends[i + 1]  # of the next token
            inside = any(first <= begin and end <= last for first, last in spans)
            assert label == (sample.tokens[i + 1] if inside else -100)
        assert sample.labels[-1] == -100 and len(sample.labels) == len(pieces)
        assert not set(sample.labels) & {TOKENIZER.image_id, TOKENIZER.pad_id}
        assert sample.num_answer_tokens == sum(label != -100 for label in sample.labels)
        # What `ask` gives the model to answer is how the sample begins.
        if messages[0]["role"] == "user":
            content = [ImagePart()] * len(sample.images) + [messages[0]["content"]]
            prompt, _ = TOKENIZER.encode_chat([{"role": "user", "content": content}])
            assert sample.tokens[: len(prompt)] == prompt


def test_a_padded_mixed_batch_is_the_mean_of_its_rows(data, proof):
    """Rows alone through `VLM.logits`, the way that answers."""
    vlm = adapted()
    rows, total, count, alone = read(data, vlm), 0.0, 0, []
    batch = make_batch(rows, TOKENIZER, vlm.config)
    assert {len(images) for images in batch.images} == {0, 1, 2, 3}
    assert {one.num_tiles for row in batch.images for one in row} == {1, 2, 3, 4}
    lengths = [len(row.tokens) for row in rows]
    assert len(set(lengths)) > 4 and batch.tokens.shape == (8, max(lengths))
    for row, tokens, labels in zip(rows, batch.tokens, batch.labels):
        n = len(row.tokens)
        assert tokens.tolist() == row.tokens + [TOKENIZER.pad_id] * (len(tokens) - n)
        assert labels.tolist() == row.labels + [-100] * (len(tokens) - n)
        logits = vlm.logits(row.tokens, [samples.open_image(p) for p in row.images])
        wanted = torch.tensor(row.labels)
        alone.append(logits[wanted >= 0])
        total += F.cross_entropy(logits, wanted, reduction="sum").item()
        count += (wanted >= 0).sum().item()
    with torch.no_grad():
        together, labels = answer_logits(vlm.model, batch)
        loss = F.cross_entropy(together, labels).item()
    assert abs(loss - total / count) < 1e-5
    proof(
        "Logits of the answers in a padded batch",
        "row by row, as one answers",
        "8 rows, 0 to 3 images of 1 to 4 tiles",
        (together - torch.cat(alone)).abs().max().item(),
        2e-5,
    )
    with torch.no_grad():  # and the images matter
        batch.images[0], batch.images[6] = batch.images[6], batch.images[0]
        other = F.cross_entropy(*answer_logits(vlm.model, batch)).item()
    assert abs(other - loss) > 1e-4


def test_gradients_reach_everything_that_is_adapted(data, proof):
    """Of a batch of images with 1 to 4 tiles, and they are those of its rows alone."""
    vlm = adapted()
    rows = read(data, vlm)
    whole = gradients(vlm, [make_batch(rows, TOKENIZER, vlm.config)])
    single = gradients(vlm, [make_batch([r], TOKENIZER, vlm.config) for r in rows])
    proof(
        "Gradients of a padded batch (relative)",
        "the sum over its rows",
        "8 rows, adapters at all layers",
        apart(whole, single),
        1e-5,
    )
    assert all(gradient.abs().max() > 0 for gradient in whole.values())
    for part in ("vision_model.transformer", "global_transformer", "projector"):
        assert any(part in name for name in whole)


def test_the_model_itself_sees_with_gradients(data):
    """Images of several sizes in a batch and one at a time, forward and backward."""
    vlm = adapted()
    batch = make_batch(read(data, vlm), TOKENIZER, vlm.config)
    named = {n: p for n, p in vlm.model.named_parameters() if p.requires_grad}
    results = []
    every = [one for row in batch.images for one in row]
    encoded = {id(one): vlm.model.encode_images([one])[0] for one in every}
    alone = [[encoded[id(one)] for one in row] for row in batch.images]
    layers = vlm.model.cross_attention_layers
    for cache in (
        VisionCache.from_images(layers, alone),
        vlm.model.vision_cache(batch.images),
    ):
        tensors = [*cache.keys.values(), *cache.values.values()]
        total = sum((t * torch.arange(t.shape[2])[:, None]).sum() for t in tensors)
        found = torch.autograd.grad(total, [*named.values()], allow_unused=True)
        results.append({n: g for n, g in zip(named, found) if g is not None})
    assert apart(*results) < 1e-5 and any("fc1" in name for name in results[0])
    assert vlm.model.vision_cache([[], []]) is None


def test_every_epoch_is_an_order_of_its_own():
    for count, size, epochs in ((7, 3, 4), (5, 12, 3), (8, 4, 2), (1, 1, 3)):
        steps = -(-count * epochs // size)
        every = [indices_of_step(s, size, count, 5, epochs) for s in range(steps)]
        assert {len(step) for step in every[:-1]} <= {size} and every[-1]
        flat = [i for step in every for i in step]
        parts = [flat[i : i + count] for i in range(0, len(flat), count)]
        assert [sorted(part) for part in parts] == [list(range(count))] * epochs
        assert count < 5 or len({tuple(part) for part in parts}) == epochs
        endless = [indices_of_step(s, size, count, 5) for s in reversed(range(steps))]
        assert endless[::-1][:-1] == every[:-1] and len(endless[0]) == size
    assert indices_of_step(3, 9, 40, 1) != indices_of_step(3, 9, 40, 2)


def test_hold_out():
    rows = list(range(40))
    rest, taken = hold_out(rows, 0.2, seed=3)
    assert len(taken) == 8 and sorted(rest + taken) == rows and taken == sorted(taken)
    assert hold_out(rows, 0.2, seed=3) == (rest, taken)
    assert hold_out(rows, 0.2, seed=4) != (rest, taken)
    assert hold_out(rows, 0.0) == (rows, []) and hold_out([7], 0.9) == ([7], [])
    assert [len(part) for part in hold_out([1, 2, 3], 0.01)] == [2, 1]


def test_a_validation_folder_is_what_is_held_out(tmp_path, no_matplotlib):
    write_folder(tmp_path / "train", LINES[:3])
    write_folder(tmp_path / "validation", LINES[3:])
    vlm = tiny()
    learned, held = read_samples(tmp_path, TOKENIZER, vlm.config)
    assert len(learned) == 3 and len(held) == 5
    assert held[0].where == "validation/metadata.jsonl line 1"
    finetune(vlm, tmp_path, tmp_path / "out", Recipe(steps=1, rank=1), report=None)
    rows = metrics(tmp_path / "out")
    assert [bool(row["held_out_loss"]) for row in rows] == [True, True]


def test_datasets_reads_the_same_folders(tmp_path):
    import datasets

    one = [line for line in LINES if "file_names" not in line]
    several = [line for line in LINES if line.get("file_names")]
    vlm = tiny()
    for number, lines in enumerate((one, several)):
        folder = tmp_path / str(number)
        write_folder(folder / "train", lines)
        write_folder(folder / "validation", lines[::-1])
        theirs = datasets.load_dataset(
            "imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache")
        )
        ours = read_samples(folder, TOKENIZER, vlm.config)
        for rows, mine in zip((theirs["train"], theirs["validation"]), ours):
            assert len(rows) == len(mine)
            for row, sample in zip(rows, mine):
                images = row.get("images") or [row.get("image")]
                images = [image.convert("RGB") for image in images if image]
                opened = [samples.open_image(path) for path in sample.images]
                assert [i.tobytes() for i in images] == [i.tobytes() for i in opened]
                messages = row.get("messages")
                messages = messages or turn(row["question"], row["answer"])
                want = encode_sample(TOKENIZER, messages, len(images))
                assert (sample.tokens, sample.labels) == want


GOOD = {"question": "What?", "answer": "yes"}
BAD = [  # lines, and what is said about each
    (b"{", "is not JSON"),
    (b"[" * 100_000, "is not JSON"),
    (b'{"question": "\xff", "answer": "x"}', "is not JSON"),
    (b"[1]", "it is a list"),
    ({**GOOD, "caption": 1, "id": 2}, "unknown key 'caption'", "unknown key 'id'"),
    ({**GOOD, "file_name": "no.png"}, "no.png does not exist"),
    ({**GOOD, "file_name": "broken.png"}, "broken.png is truncated or damaged"),
    ({**GOOD, "file_name": "metadata.jsonl"}, "of no format that is read here"),
    ({**GOOD, "file_name": "../data/a.png"}, "'../data/a.png' is not a path inside"),
    ({**GOOD, "file_name": "/etc/passwd"}, "'/etc/passwd' is not a path inside"),
    ({**GOOD, "file_name": 3}, "the file names are [3]"),
    ({**GOOD, "file_names": "a.png"}, "the file names are 'a.png'"),
    ({**GOOD, "file_name": "a.png", "file_names": ["b.png"]}, "both file_name and"),
    ({"question": "What?", "answer": " \n"}, "the answer is ' \\n'"),
    ({"question": "What?"}, "the answer is None"),
    ({"answer": "yes"}, "the question is None"),
    ({"question": 5, "answer": ["yes"]}, "the question is 5", "the answer is ['yes']"),
    ({**GOOD, "answer": "a<|image|>"}, "<|image|> is spelled in the text of the assis"),
    ({**GOOD, "question": "<|eot_id|>?"}, "<|eot_id|> is spelled in the text of the u"),
    ({**GOOD, "question": "why " * 130}, "tokens, expected at most 128"),
    ({"messages": []}, "the messages are []"),
    ({"messages": "hello"}, "the messages are 'hello'"),
    ({"messages": ["hello"]}, "a message is 'hello'"),
    ({"messages": [{"role": "user"}]}, "a message is {'role': 'user'}"),
    ({"messages": turn("a", "b")[:1]}, "and the assistant's last"),
    ({"messages": turn("a", "b")[1:]}, "expected a message of the user"),
    ({"messages": [{"role": "robot", "content": "a"}, *turn("a", "b")]}, "'robot'"),
    ({"messages": [{"role": ["a"], "content": ""}, *turn("a", "b")]}, "['a']"),
    ({"messages": turn("a", "b"), "answer": "b"}, "messages beside a question"),
]


def test_every_bad_line_is_listed_before_anything_is_trained(tmp_path):
    lines = [GOOD, b"", *[bad for bad, *_ in BAD], GOOD]
    folder, vlm = write_folder(tmp_path / "data", lines), tiny()
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:200])
    with pytest.raises(InputError) as caught:
        finetune(vlm, folder, tmp_path / "out", report=None)
    told = caught.value.args
    assert f"has bad lines, {len(BAD)} of them" in told[0]
    wanted = [(i + 3, says) for i, (_, *every) in enumerate(BAD) for says in every]
    for number, says in wanted:
        here = [t for t in told if t.startswith(f"metadata.jsonl line {number}: ")]
        assert any(says in t for t in here), (number, says, here)
    numbers = {int(re.match(r"metadata.jsonl line (\d+)", t)[1]) for t in told[1:]}
    assert numbers == {number for number, _ in wanted}
    assert (
        not lora_layers(vlm.model) and not (tmp_path / "out" / "metrics.csv").exists()
    )
    # What is shown of them fits on a screen.
    assert str(caught.value).count("\n") == 21
    assert str(caught.value).endswith(f"and {len(told) - 21} more")
    reports = []
    learned, _ = read_samples(
        folder, TOKENIZER, vlm.config, skip_bad=True, report=reports.append
    )
    where = [int(sample.where.split()[-1]) for sample in learned]
    assert where == [1, len(BAD) + 3]
    assert len(reports) == 1
    assert reports[0].split("\n")[1:] == str(caught.value).split("\n")[1:]


def test_data_that_holds_no_samples(tmp_path):
    config = tiny().config
    for name, lines, says in (
        ("none", None, "has no metadata.jsonl"),
        ("empty", [], "holds no samples"),
        ("bad", [b"{"], "holds no samples"),
    ):
        if lines is not None:
            write_folder(tmp_path / name, lines)
        with pytest.raises(InputError, match=says):
            read_samples(tmp_path / name, TOKENIZER, config, None, True, None)
    write_folder(tmp_path / "text", LINES[:1])
    blind = replace(config, vision=None)
    with pytest.raises(InputError, match="line 1: 1 images for a text-only model"):
        read_samples(tmp_path / "text", TOKENIZER, blind)
    with pytest.raises(InputError, match="line 1: .* tokens, expected at most 9"):
        read_samples(tmp_path / "text", TOKENIZER, config, max_length=9)


# One step


def step_gradients(data, recipe, vlm=None):
    """Gradients and loss of the first step; nothing is shortened."""
    trainer = trainer_of(data, replace(recipe, clip=math.inf), vlm)
    trainer.train_step()
    found = {n: p.grad.clone() for n, p in trainer.parameters.items()}
    return found, trainer.history[0]["loss"]


def test_accumulation_is_the_big_batch(data, proof):
    """Also where answers have different lengths, and the mean of means is another."""
    (want, loss), worst = step_gradients(data, Recipe(batch=8)), 0.0
    for batch, accumulate in ((4, 2), (2, 4), (1, 8)):
        recipe = Recipe(batch=batch, accumulate=accumulate)
        got, got_loss = step_gradients(data, recipe)
        worst = max(worst, apart(got, want), abs(got_loss - loss))
    proof(
        "Gradients and loss, a step in several batches (relative)",
        "in one",
        "8 samples in 2, 4 and 8 batches",
        worst,
        1e-5,
    )
    vlm = adapted()
    rows = [make_batch([r], TOKENIZER, vlm.config) for r in read(data, vlm)]
    count = sum((row.labels >= 0).sum().item() for row in rows)
    assert apart(gradients(vlm, rows, 1 / count), want) < 1e-5
    losses = [F.cross_entropy(*answer_logits(vlm.model, row)).item() for row in rows]
    assert abs(np.mean(losses) - loss) > 1e-2


def test_checkpointing_changes_nothing(data, proof):
    """Not one bit, with dropout and images, although every layer runs twice."""
    for dropout in (0.0, 0.3):
        recipe, calls = Recipe(batch=8), []
        plain = step_gradients(data, recipe, adapted(dropout=dropout))
        vlm = adapted(dropout=dropout)
        text, vision = vlm.model.language_model.model, vlm.model.vision_model
        layers = [*text.layers, *vision.transformer.layers]
        layers += [*vision.global_transformer.layers]
        for layer in layers:
            layer.register_forward_pre_hook(lambda *_: None)
            layer.input_layernorm.register_forward_pre_hook(
                lambda norm, _: calls.append(id(norm))
            )
        with recomputed(vlm.model):
            again = step_gradients(data, recipe, vlm)
        assert all(torch.equal(again[0][n], plain[0][n]) for n in plain[0])
        assert again[1] == plain[1]
        for layer in layers:
            # Once forward and once again, and a vision layer so for each tile count.
            assert calls.count(id(layer.input_layernorm)) in (2, 8)
            assert "forward" not in vars(layer)
    proof(
        "Gradients with activation checkpointing",
        "without, to the bit",
        "8 samples, with dropout and without",
        0,
        0,
    )


def test_a_training_that_goes_on_takes_the_same_steps(data, tmp_path):
    """In one process: four steps in one go; and the last two by a trainer that loads."""
    recipe, path = Recipe(batch=4, steps=4, lr=1e-2), tmp_path / "training.pt"
    whole, later = trainer_of(data, recipe), trainer_of(data, recipe)
    while whole.step < whole.steps:
        if whole.step == 2:
            whole.save(path)
        whole.train_step()
    later.load(path)
    assert later.step == 2
    while later.step < later.steps:
        later.train_step()
    assert same(later.adapter(), whole.adapter())


def test_dropout_is_a_function_of_seed_and_step(data):
    def loss(seed, step, noise):
        torch.manual_seed(noise)
        recipe = Recipe(batch=8, steps=99, seed=seed)
        trainer = trainer_of(data, recipe, adapted(dropout=0.5))
        trainer.step = step
        before = torch.random.get_rng_state()
        trainer.train_step()
        assert torch.equal(torch.random.get_rng_state(), before)
        return trainer.history[0]["loss"]

    first = loss(0, 4, 1)
    assert loss(0, 4, 2) == first
    assert abs(loss(0, 5, 1) - first) > 1e-3 and abs(loss(1, 4, 1) - first) > 1e-3
    numbers, vlm = set(), adapted()
    for seed in range(3):
        trainer = trainer_of(data, Recipe(seed=seed), vlm)
        for trainer.step, trainer.processes.rank in ((0, 0), (1, 0), (0, 1), (2, 1)):
            with trainer.randomness():
                numbers.add(torch.rand(1).item())
    assert len(numbers) == 12


def test_learning_rate():
    recipe = Recipe(lr=2.0, warmup=0.25)
    rates = [learning_rate(recipe, step, 40) for step in range(40)]
    assert np.allclose(np.diff(rates[:10]), 0.2) and rates[9] == rates[10] == 2.0
    assert rates[25] == pytest.approx(1.0) and 0 < rates[-1] < 0.01
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))
    assert learning_rate(Recipe(lr=1.0, warmup=0.0), 0, 1) == 1.0
    assert learning_rate(Recipe(lr=1.0, warmup=1.0), 2, 3) == 1.0


def test_what_is_measured_is_what_would_be_written(pictures, tmp_path):
    """Loss over the answers' tokens; right are those that greedy writing repeats.

    The trained model writes the answers of two turns, and some of them are changed.
    """
    vlm = load(device="cpu", dtype="float32")
    end, lines, right = TOKENIZER.special["<|eot_id|>"], [], 0
    changes = [str, lambda text: text + " 7", lambda text: text[1:] or "7", str]
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes((pictures / f"{i}.png").read_bytes())
        image, messages = samples.open_image(tmp_path / f"{i}.png"), []
        for k, question in enumerate(("How many things?", "What is in the picture?")):
            messages.append({"role": "user", "content": question})
            shown = [{**m} for m in messages]
            shown[0]["content"] = [ImagePart(image), shown[0]["content"]]
            prompt, images = TOKENIZER.encode_chat(shown)
            written = vlm.generate(prompt, images, 20, [end])
            answer = changes[(i + k) % 4](TOKENIZER.decode(written, skip_special=True))
            messages.append({"role": "assistant", "content": answer})
            right += TOKENIZER.encode(answer) + [end] == written
        lines.append(json.dumps({"file_name": f"{i}.png", "messages": messages}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    rows, total = read(tmp_path, vlm), 0.0
    for row in rows:
        logits = vlm.logits(row.tokens, [samples.open_image(row.images[0])])
        wanted = torch.tensor(row.labels)
        total += F.cross_entropy(logits, wanted, reduction="sum").item()
    add_adapter(vlm.model, report=None)
    trainer = Trainer(vlm, rows, rows, Recipe(batch=4), Processes("cpu"))
    trainer.measure()
    (measured,) = trainer.history
    count = sum(row.num_answer_tokens for row in rows)
    assert measured["held_out_loss"] == pytest.approx(total / count, abs=1e-5)
    assert measured["held_out_right"] == pytest.approx(right / 12) and 0 < right < 12
    assert vlm.model.training


def test_bfloat16_trains_too(data, monkeypatch):
    """On a GPU, autocast's norms give fp32 where the weights are bf16; as here."""
    norms = {name: getattr(F, name) for name in ("layer_norm", "rms_norm")}

    def in_fp32(norm):
        def cast(x):
            return x.float() if isinstance(x, torch.Tensor) else x

        return lambda *a, **k: norm(*map(cast, a), **{n: cast(x) for n, x in k.items()})

    exact, exact_loss = step_gradients(data, Recipe(batch=8))
    for gpu in (False, True):
        vlm = adapted()
        vlm.model.to(torch.bfloat16)
        for layer in lora_layers(vlm.model).values():
            layer.adapters.float()
        for name, norm in norms.items() if gpu else ():
            monkeypatch.setattr(F, name, in_fp32(norm))
        found, loss = step_gradients(data, Recipe(batch=8), vlm)
        assert {g.dtype for g in found.values()} == {torch.float32}
        assert abs(loss - exact_loss) < 0.1
        a, b = (torch.cat([g.flatten() for g in x.values()]) for x in (found, exact))
        assert F.cosine_similarity(a, b, dim=0) > 0.97
    cpu = torch.device("cpu")
    assert training_dtype(cpu) == torch.float32
    assert training_dtype(cpu, "bfloat16") == torch.bfloat16
    with pytest.raises(InputError, match="float16 overflows"):
        training_dtype(cpu, "float16")


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"steps": 1.5}, "steps is 1.5"),
        ({"batch": True}, "batch is True"),
        ({"accumulate": -1}, "accumulate is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"lr": 0}, "lr is 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"warmup": "a"}, "warmup is 'a'"),
    ],
)
def test_a_recipe_that_makes_no_sense(settings, says):
    with pytest.raises(InputError, match=re.escape(says) + ": expected .*change it"):
        Recipe(**settings)


# Whole trainings


def metrics(out):
    """Rows of metrics.csv, without what depends on the time of day."""
    with open(out / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{n: v for n, v in row.items() if n != "seconds"} for row in rows]


SHORT = Recipe(steps=4, batch=3, rank=2, lr=1e-2, seed=5, targets=("all",))


def test_the_base_stays_as_it_was(data, tmp_path, no_matplotlib):
    """Bit for bit, and what was learned is in the files alone."""
    vlm = tiny()
    vlm.ask("Why?", max_new_tokens=2)  # what answering leaves behind is no harm
    before = {n: t.clone() for n, t in vlm.model.state_dict().items()}
    out, reports, shown = tmp_path / "out", [], []
    trained = finetune(
        vlm,
        data,
        out,
        SHORT,
        report=reports.append,
        progress=lambda trainer: shown.append(trainer.step),
    )
    assert trained is vlm and not vlm.model.training and shown == [1, 2, 3, 4]
    assert "parameters train" in reports[0]
    assert reports[1] == (
        "7 samples to learn from, 1 held out; 4 steps in float32 on cpu"
    )
    (sample, *_) = read(data, vlm)
    images = [samples.open_image(path) for path in sample.images]
    learned = vlm.logits(sample.tokens, images)
    with pytest.raises(InputError, match="The model has adapters"):
        finetune(vlm, data, out, SHORT)
    remove_adapters(vlm.model)
    after = vlm.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (vlm.logits(sample.tokens, images) - learned).abs().max() > 1e-2
    load_adapter(vlm.model, out)
    assert torch.equal(vlm.logits(sample.tokens, images), learned)
    assert {path.name for path in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "metrics.csv",
        "training.pt",
    }


def test_metrics_are_for_pandas_and_the_loss_for_the_eye(data, tmp_path):
    import pandas

    recipe = replace(SHORT, steps=None, epochs=3, warmup=0.0)
    finetune(tiny(), data, tmp_path / "out", recipe, report=None)
    exact = {"float_precision": "round_trip"}  # the default may be off by a bit
    table = pandas.read_csv(tmp_path / "out" / "metrics.csv", **exact)
    assert tuple(table.columns) == COLUMNS and table.step.tolist() == list(range(8))
    assert table.epoch.tolist() == [*(3 * i / 7 for i in range(7)), 3.0]
    measured = table.held_out_loss.notna().tolist()  # before, after each epoch, last
    assert measured == [True, False, False, True, False, True, False, True]
    assert table.loss.notna().tolist() == [False] + [True] * 7
    assert (table.gradient_norm[1:] > 0).all() and (table.seconds[1:] > 0).all()
    learned, _ = hold_out(read(data, tiny()), 0.1, 5)
    tokens = sum(sample.num_answer_tokens for sample in learned)
    assert table.tokens.sum() == 3 * tokens
    with Image.open(tmp_path / "out" / "loss.png") as image:
        assert image.format == "PNG" and np.asarray(image).std() > 10


def test_only_the_same_training_goes_on(data, tmp_path, no_matplotlib):
    """Any other setting, other data or another model is refused and nothing touched."""
    out = tmp_path / "out"
    with pytest.raises(InputError, match="has no training.pt"):
        finetune(tiny(), data, out, SHORT, resume=True)
    finetune(tiny(), data, out, SHORT, report=None)
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def refused(says, vlm=None, data=data, recipe=SHORT):
        vlm = vlm or tiny()
        with pytest.raises(InputError, match=says):
            finetune(vlm, data, out, recipe, report=None)
        assert not lora_layers(vlm.model)  # it can be given again
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before

    others = dict(targets=("self",), rank=3, alpha=5, dropout=0.1, epochs=2, steps=5)
    others |= dict(lr=1e-3, warmup=0.5, batch=2, accumulate=2, clip=2.0, held_out=0.4)
    others |= dict(max_length=100, seed=6)
    assert others.keys() == {field.name for field in fields(Recipe)}
    for name, value in others.items():
        refused(f"was begun with {name} ", recipe=replace(SHORT, **{name: value}))
    refused("a model of checksum", vlm=tiny(seed=1))
    more = write_folder(tmp_path / "more", [*LINES[:-1], GOOD])
    refused("samples of checksum", data=more)
    half = tiny()
    half.model.to(torch.bfloat16)
    refused("was begun with dtype 'float32': expected 'bfloat16'", vlm=half)
    # The same again: nothing is left to do.
    finetune(tiny(), data, out, SHORT, resume=True, report=None)
    now = {path.name: path.read_bytes() for path in out.iterdir()}
    assert now == before
    (out / "training.pt").unlink()
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    refused("holds adapter_config.json, .* expected an empty folder, or one with the ")
    with pytest.raises(InputError, match="is a file"):
        finetune(tiny(), data, out / "metrics.csv", SHORT)
    with pytest.raises(InputError, match="save_every is 0"):
        finetune(tiny(), data, tmp_path / "new", SHORT, save_every=0)


def test_a_damaged_state_is_one_clear_error(data, tmp_path, no_matplotlib):
    out, rng = tmp_path / "out", random.Random(0)
    finetune(tiny(), data, out, SHORT, report=None)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    state = out / "training.pt"
    whole = before[state.name]
    damaged = [b"", b"hello", whole[:100], whole[: len(whole) // 2], whole[:-1]]
    for length in (1, 64, 4096) * 5:
        place = rng.randrange(len(whole) - length)
        junk = bytes(b ^ 0x5A for b in whole[place : place + length])
        damaged.append(whole[:place] + junk + whole[place + length :])
    noticed = 0
    for content in damaged:
        state.write_bytes(content)
        try:
            finetune(tiny(), data, out, SHORT, report=None)
            # It was between two tensors, where nothing is.
            for path in out.iterdir():
                assert path.name == state.name or path.read_bytes() == before[path.name]
        except InputError as error:
            says = r"training.pt cannot be read \([\w ]+\): expected .*delete it to beg"
            assert re.search(says, str(error))
            noticed += 1
    assert noticed >= 15
    for content in ({}, [1], {"settings": {}, "step": 1}):
        torch.save(content, state)
        with pytest.raises(InputError, match="training.pt"):
            finetune(tiny(), data, out, SHORT, report=None)


def test_a_loss_that_is_no_number_ends_it(data, tmp_path):
    vlm = tiny()
    with torch.no_grad():
        vlm.model.language_model.lm_head.weight[0, 0] = math.nan
    with pytest.raises(InputError, match="The loss of step 1 is nan: expected a num"):
        finetune(vlm, data, tmp_path / "out", SHORT, report=None)
    assert torch.load(tmp_path / "out" / "training.pt")["step"] == 0


def test_several_processes_need_accelerate(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match="accelerate is not installed"):
        Processes("cpu")


# In processes of their own: see the end of this file


def helper(task, folder):
    """Run one of the functions below in a new process; returns what it reports."""
    command = [sys.executable, __file__, task, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(Path(module.__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def same_training(out, want):
    """Whether two folders hold the same, bit for bit, but for seconds."""
    assert metrics(out) == metrics(want)
    name = "adapter_model.safetensors"
    assert (out / name).read_bytes() == (want / name).read_bytes()
    states = [torch.load(f / "training.pt", weights_only=True) for f in (out, want)]
    for state in states:
        del state["checksum"]  # of the seconds too
        for row in state["history"]:
            del row["seconds"]
    assert same(*states)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_killed_at_random_moments_it_is_as_if_it_had_not_been(data, tmp_path, proof):
    report = helper("kills", tmp_path)
    assert report["kills"] >= 20 and report["resumed"] >= 10
    # Between what a kill left in metrics.csv and the state lie fewer steps than a save.
    assert max(report["lost"]) <= 3 and len(set(report["lost"])) > 1
    same_training(tmp_path / "killed", tmp_path / "whole")
    proof(
        "Fine-tuning killed at random and gone on with",
        "one left alone, to the bit",
        "60 steps, 20 kills or more",
        0,
        0,
    )


def test_killed_at_the_worst_moments(data, tmp_path, proof):
    """While the state is written, before and after its renaming, between two rows."""
    moments = helper("moments", tmp_path)["moments"]
    for name in moments:
        same_training(tmp_path / name, tmp_path / "whole")
    proof(
        "Fine-tuning killed while it writes and gone on with",
        "one left alone, to the bit",
        f"{len(moments)} moments",
        0,
        0,
    )


@pytest.mark.witness
def test_two_and_three_processes_learn_what_one_does(data, tmp_path, proof):
    """As torchrun starts them, with gloo; the steps have samples that don't divide."""
    report = helper("together", tmp_path)
    assert report["counts"] == [2, 3, 9]
    alone, worst = metrics(tmp_path / "1"), 0.0
    for count in report["counts"]:
        rows = metrics(tmp_path / str(count))
        assert len(rows) == len(alone) == 9
        for row, want in zip(rows, alone):
            for name in row:
                got, wanted = float(row[name] or 0), float(want[name] or 0)
                assert got == pytest.approx(wanted, rel=1e-4, abs=1e-6), name
        vlms = [tiny(), tiny(), tiny()]
        for vlm, folder in zip(vlms[1:], ("1", str(count))):
            load_adapter(vlm.model, tmp_path / folder)
        sample = read(data, vlms[0])[1]
        images = [samples.open_image(path) for path in sample.images]
        base, want, got = (vlm.logits(sample.tokens, images) for vlm in vlms)
        share = (got - want).abs().max() / (want - base).abs().max()
        worst = max(worst, share.item())
    proof(
        "Fine-tuning in several processes, what it changes in the logits (relative)",
        "one process",
        "2, 3 and 9 processes, 9 steps",
        worst,
        1e-3,
    )


# The command line, with the model that ships


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Eight pictures and questions, whose answers no model knows yet."""
    from mllama_lite.small_model.scenes import draw_scene, load_masks

    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    masks, lines = load_masks("train"), []
    for i in range(8):
        image = draw_scene(rng, masks).image
        image.save(folder / f"{i}.png")
        line = {"file_name": f"{i}.png", "question": "Which word?", "answer": "circle"}
        lines.append(json.dumps(line))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """The folder of an adapter that the command line has trained."""
    out = tmp_path_factory.mktemp("trained") / "out"
    options = "--steps 12 --batch 2 --lr 1e-2 --rank 4 --seed 3 --device cpu"
    with torch.enable_grad():
        code = cli.main(
            ["finetune", str(pictures), "--out", str(out), *options.split()]
        )
    assert code == 0
    return out


def test_the_command_line_from_pictures_to_an_answer(trained, pictures, capsys):
    rows = metrics(trained)
    assert len(rows) == 13 and float(rows[12]["loss"]) < 0.5 * float(rows[1]["loss"])
    assert float(rows[12]["held_out_loss"]) < 0.5 * float(rows[0]["held_out_loss"])
    question = [str(pictures / "0.png"), "Which word?"]
    assert cli.main(["ask", *question, "--device", "cpu"]) == 0
    before = capsys.readouterr().out
    ask = ["ask", *question, "--device", "cpu", "--adapter"]
    assert cli.main([*ask, str(trained)]) == 0
    after = capsys.readouterr().out
    vlm = load(device="cpu")
    assert vlm.ask(*reversed(question)) + "\n" == before
    load_adapter(vlm.model, trained)
    assert vlm.ask(*reversed(question)) + "\n" == after != before
    assert cli.main([*ask, str(pictures)]) == 2
    assert "has no adapter_config.json" in capsys.readouterr().err
    arguments = ["finetune", str(pictures), "--out", str(trained), "--resume"]
    assert cli.main([*arguments, "--rank", "5"]) == 2
    assert "was begun with" in capsys.readouterr().err


@pytest.mark.witness
def test_accelerate_launches_the_same_command(trained, pictures, tmp_path):
    options = "--steps 12 --batch 2 --lr 1e-2 --rank 4 --seed 3 --device cpu"
    launch = "accelerate.commands.launch --cpu --num_processes 2 --num_machines 1"
    launch += " --mixed_precision no --dynamo_backend no --main_process_port 0"
    command = [sys.executable, "-m", *launch.split(), "-m", "mllama_lite.cli"]
    command += ["finetune", str(pictures), "--out", str(tmp_path), *options.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(tmp_path)]  # the first process alone says so
    for row, want in zip(metrics(tmp_path), metrics(trained), strict=True):
        for name in ("loss", "held_out_loss", "gradient_norm"):
            if want[name]:
                assert float(row[name]) == pytest.approx(float(want[name]), rel=1e-2)


# What follows runs in a process of its own, with one thread: a fork of it trains as a
# new process would, without the seconds that importing takes.


def fork(action):
    """Run `action` in a fork; returns the process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return pid


def finished(pid):
    """Wait for a fork that is expected to succeed; returns the seconds it computed."""
    _, status, usage = os.wait4(pid, 0)
    assert status == 0, status
    return usage.ru_utime + usage.ru_stime


def rows(folder):
    """How many rows a metrics.csv has so far, its head not counted."""
    table = folder / "metrics.csv"
    return table.read_bytes().count(b"\n") - 1 if table.exists() else 0


def kills(folder):
    """A training killed at random moments until it is done, and one left alone."""
    recipe = Recipe(
        steps=60, batch=2, rank=2, lr=1e-2, dropout=0.2, targets=("self", "cross")
    )
    vlm, rng, lost, resumed = tiny(), random.Random(0), [], 0

    def train(name):
        out = folder / name
        return lambda: finetune(
            vlm, folder / "data", out, recipe, save_every=3, report=None
        )

    whole = finished(fork(train("whole")))
    while len(lost) < 300:
        begun = (folder / "killed" / "training.pt").exists()
        pid = fork(train("killed"))
        # In computing time, as other work on the machine may leave little of it; what
        # clock_getcpuclockid(3) returns, which Python does not have.
        clock, moment = (~pid << 3) | 2, rng.uniform(0, whole / 6)
        # On a fast day, twenty kills come because nobody gets far beyond the last one.
        far = recipe.steps * (len(lost) + 1) / 25
        while time.clock_gettime(clock) < moment and rows(folder / "killed") < far:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if status == 0:
            break
        assert status == signal.SIGKILL, status
        state, table = (folder / "killed" / n for n in ("training.pt", "metrics.csv"))
        saved = torch.load(state, weights_only=True)["step"] if state.exists() else 0
        lines = table.read_bytes().split(b"\n")[1:-1] if table.exists() else []
        steps = [int(line.split(b",")[0]) for line in lines]
        lost.append(max(steps, default=0) - saved if steps else 0)
        resumed += begun
    return {"kills": len(lost), "lost": lost, "resumed": resumed}


def moments(folder):
    """Trainings killed at the second save, each at another moment, and then resumed."""
    vlm, recipe = tiny(), Recipe(steps=6, batch=3, rank=2, lr=1e-2, dropout=0.2)

    def train(name):
        out = folder / name
        finetune(vlm, folder / "data", out, recipe, save_every=2, report=None)

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def half_written(state, path):
        save(state, path)
        if state["step"] == 4:
            os.truncate(path, os.path.getsize(path) // 2)
            die()

    def before_renaming(part, path):
        if state_of(part) == 4:
            die()
        rename(part, path)

    def after_renaming(part, path):
        rename(part, path)
        if state_of(path) == 4:
            die()

    def half_a_row(path, rows, mode="a"):
        write_rows(path, rows, mode)
        if rows and rows[-1]["step"] == 3 and mode == "a":
            os.truncate(path, os.path.getsize(path) - 9)
            die()

    def nothing_yet(path, rows, mode="a"):
        write_rows(path, rows, mode)
        die()

    def state_of(path):
        return torch.load(path, weights_only=True)["step"]

    save, rename, write_rows = torch.save, os.replace, module.write_rows
    places = {
        half_written: (torch, "save"),
        before_renaming: (os, "replace"),
        after_renaming: (os, "replace"),
        half_a_row: (module, "write_rows"),
        nothing_yet: (module, "write_rows"),
    }

    def interrupted(change):
        setattr(*places[change], change)
        train(change.__name__)

    finished(fork(lambda: train("whole")))
    for change in places:
        _, status = os.waitpid(fork(lambda: interrupted(change)), 0)
        assert status == signal.SIGKILL, (change.__name__, status)
        finished(fork(lambda: train(change.__name__)))
    return {"moments": [change.__name__ for change in places]}


def together(folder):
    """The same training by 1, 2, 3 and 9 processes; a step has 7 samples of a batch."""
    import accelerate  # noqa: F401  (once for all of them)

    vlm = tiny()
    recipe = Recipe(steps=8, batch=7, rank=2, lr=3e-3, targets=("all",))

    def train(count, rank, port):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count}
        names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        if count > 1:
            os.environ |= {name: str(value) for name, value in names.items()}
        finetune(vlm, folder / "data", folder / str(count), recipe, report=None)

    for count in (1, 2, 3, 9):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pids = [fork(lambda: train(count, rank, port)) for rank in range(count)]
        for pid in pids:
            finished(pid)
    return {"counts": [2, 3, 9]}


if __name__ == "__main__":
    optional = {"accelerate", "datasets", "matplotlib", "pandas", "peft"}
    assert not optional & sys.modules.keys(), optional & sys.modules.keys()
    sys.modules["matplotlib"] = None  # a training needs none
    torch.set_num_threads(1)
    task, folder = sys.argv[1], Path(sys.argv[2])
    # What torch imports when it first trains would take each fork seconds.
    warm = Recipe(steps=1, rank=1)
    finetune(tiny(), folder / "data", folder / "warm", warm, report=None)
    print(json.dumps(globals()[task](folder)))
