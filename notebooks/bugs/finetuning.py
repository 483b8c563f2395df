"""Chapter 13: bugs of fine-tuning, and what notices them."""

import math
import tempfile
from pathlib import Path

import torch

from bugs import a_bug, a_check, replaced
from bugs.models import random_text_model
from mllama_lite.adapters.data import (
    Sample,
    encode_sample,
    indices_of_step,
    make_batch,
)
from mllama_lite.adapters.lora import add_adapter
from mllama_lite.adapters.processes import Processes
from mllama_lite.adapters.recipe import Recipe
from mllama_lite.adapters.training import Trainer
from mllama_lite.checkpoints.hub import find_folder, find_tokenizer
from mllama_lite.vlm import VLM


@a_bug(
    "end-masked-with-the-padding",
    "Short rows are padded with the end of turn, and labels are taken away wherever that "
    "token stands: the ends of the answers go with the padding.",
    "tests/test_finetune.py::test_a_padded_mixed_batch_is_the_mean_of_its_rows",
)
def end_masked_with_the_padding():
    right = make_batch

    def wrong(samples, tokenizer, config):
        batch, end = right(samples, tokenizer, config), tokenizer.special["<|eot_id|>"]
        batch.tokens[batch.tokens == tokenizer.pad_id] = end
        batch.labels[batch.labels == end] = -100
        return batch

    with replaced(make_batch, wrong):
        yield


@a_bug(
    "mean-of-the-means",
    "Where several batches make a step, each gives the mean of its own tokens, and these "
    "means are averaged: tokens of short answers count more.",
    "tests/test_finetune.py::test_accumulation_is_the_big_batch",
)
def mean_of_the_means():
    right = Trainer.loss

    def wrong(self, batch):
        count, seed = len(self.samples), self.recipe.seed
        chosen = indices_of_step(self.step, self.size, count, seed, self.epochs)
        of_the_step = sum(self.samples[i].num_answer_tokens for i in chosen)
        mean = right(self, batch) / (batch.labels >= 0).sum()
        return mean * of_the_step / self.recipe.accumulate  # divided by it later

    with replaced(Trainer.loss, wrong):
        yield


@a_bug(
    "averages-forgotten",
    "A training that goes on takes the adapter from its state and begins AdamW's "
    "averages anew.",
    "tests/test_finetune.py::test_a_training_that_goes_on_takes_the_same_steps",
)
def averages_forgotten():
    right = Trainer.load

    def wrong(self, path):
        right(self, path)
        self.optimiser.state.clear()

    with replaced(Trainer.load, wrong):
        yield


TOKENIZER = find_tokenizer(find_folder())
END = TOKENIZER.special["<|eot_id|>"]


def sample_of(question, answer):
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer},
    ]
    return Sample("a line", (), *encode_sample(TOKENIZER, messages))


def trainer_of(samples, **settings):
    """A small random text model with an adapter, and a Trainer of it."""
    model = random_text_model(TOKENIZER, 128)
    recipe = Recipe(targets=("self", "mlp", "head"), lr=0.02, **settings)
    add_adapter(model, recipe.targets, recipe.rank, report=None)
    return Trainer(VLM(model, TOKENIZER), samples, [], recipe, Processes("cpu"))


SHORT, LONG = sample_of("Which digit?", "4"), sample_of("What is it?", "red 4, blue 7")


def taught():
    """A trainer after 40 steps on a short and a long answer, side by side."""
    trainer = trainer_of([SHORT, LONG], steps=40, batch=2)
    for _ in range(trainer.steps):
        trainer.train_step()
    trainer.model.eval()
    return trainer


def written(trainer, sample, most):
    """What is written after a sample's prompt, up to so many tokens."""
    first = next(i for i, label in enumerate(sample.labels) if label >= 0)
    return trainer.vlm.generate(sample.tokens[: first + 1], (), most, {END})


def answer_of(sample):
    return [label for label in sample.labels if label >= 0]


@a_check("the labels of a sample are the answer and its end")
def labels():
    for sample, text in ((SHORT, "4"), (LONG, "red 4, blue 7")):
        assert answer_of(sample) == [*TOKENIZER.encode(text), END]


@a_check("the loss falls to a tenth, and the answers are written to the letter")
def the_loss_falls():
    trainer = taught()
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"] / 10
    for sample in (SHORT, LONG):
        answer = answer_of(sample)[:-1]
        assert written(trainer, sample, len(answer)) == answer


@a_check("after training the model stops where the answer is over")
def it_stops():
    trainer = taught()
    for sample in (SHORT, LONG):
        assert written(trainer, sample, 30) == answer_of(sample)


def gradients(samples, **settings):
    trainer = trainer_of(samples, clip=math.inf, **settings)
    trainer.train_step()
    return torch.cat([p.grad.flatten() for p in trainer.parameters.values()])


def same_in_two_batches(samples):
    whole = gradients(samples, batch=len(samples))
    parts = gradients(samples, batch=len(samples) // 2, accumulate=2)
    assert (whole - parts).abs().max() < 1e-4 * whole.abs().max()


@a_check("a step in two batches as in one, answers equally long")
def equally_long():
    same_in_two_batches([sample_of(f"And {n}?", str(n)) for n in range(4)])


@a_check("a step in two batches as in one, answers of different lengths")
def of_different_lengths():
    same_in_two_batches([SHORT, LONG])


def stopped(steps):
    """A trainer that has loaded its state after half of some steps, and its twin."""
    whole = trainer_of([SHORT, LONG], steps=steps, batch=1)
    later = trainer_of([SHORT, LONG], steps=steps, batch=1)
    for _ in range(steps // 2):
        whole.train_step()
    with tempfile.TemporaryDirectory() as folder:
        whole.save(Path(folder) / "training.pt")
        later.load(Path(folder) / "training.pt")
    return whole, later


def same_adapter(one, other):
    other = other.adapter()
    return all(torch.equal(value, other[n]) for n, value in one.adapter().items())


@a_check("a training that goes on: adapter, step and history are those that were saved")
def what_was_saved():
    whole, later = stopped(steps=8)
    assert same_adapter(whole, later) and later.step == whole.step == 4
    assert later.history == whole.history


@a_check("a training that goes on ends with the bits of one that was not stopped")
def the_same_bits():
    whole, later = stopped(steps=8)
    for trainer in (whole, later):
        while trainer.step < trainer.steps:
            trainer.train_step()
    assert same_adapter(whole, later)
