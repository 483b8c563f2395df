"""Chapter 14: bugs of measuring a fine-tuning and its memory, and what notices them."""

import json
import tempfile
import warnings
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image
from torch.utils.checkpoint import checkpoint

from bugs import a_bug, a_check, replaced
from mllama_lite.adapters import cost, data, training
from mllama_lite.adapters.cost import Ledger, Rehearsal, training_cost
from mllama_lite.adapters.data import hold_out, read_samples
from mllama_lite.adapters.lora import adapter_size, add_adapter
from mllama_lite.decoder import TextConfig
from mllama_lite.model import Mllama, MllamaConfig
from mllama_lite.vlm import load


@a_bug(
    "held-out-at-random",
    "What is held out is drawn at random from all samples, although several are of one "
    "drawing: each that is asked for has sisters among those that are learned.",
    "tests/test_finetune.py::test_a_validation_folder_is_what_is_held_out",
)
def held_out_at_random():
    right = read_samples

    def wrong(*args, **kwargs):
        samples, asked = right(*args, **kwargs)
        everything = samples + asked
        return hold_out(everything, len(asked) / len(everything))

    with replaced(read_samples, wrong):
        yield


@a_bug(
    "reentrant-checkpointing",
    "Layers are computed again in the older, reentrant way, which records nothing where "
    "its inputs need no gradient: with a frozen model the adapters inside learn nothing.",
    "tests/test_finetune.py::test_checkpointing_changes_nothing",
)
def reentrant_checkpointing():
    def wrong(function, *args, use_reentrant=False, **kwargs):
        return checkpoint(partial(function, **kwargs), *args, use_reentrant=True)

    with patch.object(training, "checkpoint", wrong), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no input needs a gradient
        yield


@a_bug(
    "first-step-alone",
    "The memory of a training is taken from its first step, in which AdamW has no "
    "averages yet.",
    "tests/test_memory.py::test_a_rank_more_costs_what_is_kept_for_it",
)
def first_step_alone():
    def wrong(trainer):
        with Ledger(trainer.model.device.type) as ledger:
            ledger.add(trainer.model.parameters())
            trainer.train_step()
        return ledger.peak

    with replaced(cost.peak_of_step, wrong):
        yield


DESIGNERS, THINGS, PICTURES = ("one", "two", "three"), ("egg", "taco"), 4


def write(folder, designers, pictures):
    """A folder as chapter 14's: pictures of each thing in each designer's colours."""
    folder.mkdir(parents=True)
    lines = []
    for d, designer in enumerate(designers):
        for t, thing in enumerate(THINGS):
            for number in range(pictures):
                name = f"{designer}-{thing}-{number}.png"
                colour = (50 * d + 40 * len(designers), 90 * t, 10 * number)
                Image.new("RGB", (8, 8), colour).save(folder / name)
                line = {"file_name": name, "question": "What is this?"}
                lines.append(json.dumps(line | {"answer": thing}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def pictures():
    """Paths and bytes of what is learned, and of what is held out."""
    vlm = load(device="cpu")
    with tempfile.TemporaryDirectory() as holder:
        folder = Path(holder)
        write(folder / "train", DESIGNERS, PICTURES)
        write(folder / "validation", ["four"], 2)
        parts = data.read_samples(folder, vlm.tokenizer, vlm.config)
        return [
            {sample.images[0].name: sample.images[0].read_bytes() for sample in part}
            for part in parts
        ]


@a_check("as many are held out as the folder has")
def as_many():
    learned, asked = pictures()
    assert (len(learned), len(asked)) == (len(DESIGNERS) * 2 * PICTURES, 4)


@a_check("no picture is learned and asked for, byte for byte")
def no_picture():
    learned, asked = pictures()
    assert not set(learned.values()) & set(asked.values())


@a_check("no designer is learned and asked for")
def no_designer():
    learned, asked = ({name.split("-")[0] for name in part} for part in pictures())
    assert not learned & asked


TEXT = TextConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    cross_attention_layers=(),
)
CONFIG, ROWS = MllamaConfig(TEXT, None), [(48, 8, ()), (30, 4, ())]
TARGETS = ("self", "mlp", "head")


def trainer(rank=4):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mllama(CONFIG)
        for parameter in add_adapter(model, TARGETS, rank, report=None):
            torch.nn.init.normal_(parameter, std=0.1)
    return Rehearsal(model, ROWS)


def first_step(checkpointing):
    """(loss, gradients) of a step, with layers computed again or kept."""
    one = trainer()
    (batch,) = one.batches(one.samples)
    way = training.recomputed(one.model) if checkpointing else nullcontext()
    with way, torch.enable_grad():
        loss = one.loss(batch)
        loss.backward()
    zeros = {name: torch.zeros_like(p) for name, p in one.parameters.items()}
    given = {n: p.grad for n, p in one.parameters.items() if p.grad is not None}
    return loss.item(), zeros | given


@a_check("the loss, computed again and kept")
def the_loss():
    assert first_step(True)[0] == first_step(False)[0]


@a_check("every gradient, computed again and kept")
def every_gradient():
    again, kept = (first_step(way)[1] for way in (True, False))
    assert all(torch.equal(again[name], kept[name]) for name in kept)


@a_check("a step counted without numbers, and with them")
def without_numbers():
    with torch.enable_grad():
        real = cost.peak_of_step(trainer())
    counted = training_cost(CONFIG, ROWS, TARGETS, 4, torch.float32).total
    assert abs(real - counted) <= 16


@a_check("16 bytes more for every number more")
def sixteen_bytes():
    with torch.enable_grad():
        more = cost.peak_of_step(trainer(32)) - cost.peak_of_step(trainer(4))
    model = Mllama(CONFIG)
    few, many = (adapter_size(model, TARGETS, rank) for rank in (4, 32))
    assert more >= 16 * (many - few)
