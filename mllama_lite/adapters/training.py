# Generated from notebooks/13_finetuning.ipynb: edit there, or here and run `make update`.
"""An adapter in training: its steps, its state, and what it has measured.

Built in chapter 13, notebooks/13_finetuning.ipynb. A step is a function of the seed and
its number, so that training can stop anywhere and go on as if it had not.
"""

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mllama_lite.adapters.data import (
    Batch,
    Sample,
    answer_logits,
    indices_of_step,
    make_batch,
)
from mllama_lite.adapters.lora import (
    base_parameters,
)
from mllama_lite.adapters.processes import Processes
from mllama_lite.adapters.recipe import Recipe, chosen, learning_rate
from mllama_lite.errors import InputError
from mllama_lite.files import system_errors
from mllama_lite.model import Mllama
from mllama_lite.training_folder import (
    Unlike,
    as_stored,
    check_alike,
    check_keys,
    check_optimiser,
    check_settings,
    load_state,
    save_state,
)
from mllama_lite.vlm import VLM


@contextmanager
def recomputed(model: Mllama) -> Iterator[None]:
    """Within this block layers keep only their input, and run again to go backward.

    One more pass forward for a fraction of the memory: half more work where weights are
    frozen, a third at most where all of them train. Nothing must be cached meanwhile:
    it would be appended twice.
    """
    layers = [*model.language_model.model.layers]
    if model.config.vision is not None:
        vision = model.vision_model
        layers += [*vision.transformer.layers, *vision.global_transformer.layers]
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own comes back


COLUMNS = (
    "step",
    "epoch",
    "learning_rate",
    "loss",
    "gradient_norm",
    "tokens",
    "seconds",
    "held_out_loss",
    "held_out_right",
)


class Trainer:
    """An adapter in training, and everything that a later run needs to go on.

    Args:
        vlm: VLM whose model has an adapter that trains.
        samples: list of Sample to learn from.
        held_out: list of Sample to measure with, maybe empty.
        recipe: Recipe.
        processes: Processes.

    Attributes:
        step, steps: how many steps are done, and how many there are.
        recipe: as given, with nothing left open.
        history: list of dicts with COLUMNS, one a step; None where nothing was
            measured. `tokens` are those of the answers, over which the loss is a mean;
            `seconds` are those of the step alone.
        best: dict with `step`, `loss` and `adapter`, of the step after which the loss
            on what is held out was lowest; None if nothing was measured yet.
    """

    def __init__(
        self,
        vlm: VLM,
        samples: list[Sample],
        held_out: list[Sample],
        recipe: Recipe,
        processes: Processes,
    ) -> None:
        self.vlm, self.model = vlm, vlm.model.train()
        self.recipe = recipe = chosen(recipe, vlm.config)
        self.samples, self.held_out, self.processes = samples, held_out, processes
        named = self.model.named_parameters()
        self.parameters = {name: p for name, p in named if p.requires_grad}
        # Without decay: an adapter that shrinks is one that forgets.
        self.optimiser = torch.optim.AdamW(self.parameters.values(), weight_decay=0.0)
        # Samples of a step, at most all there are.
        self.size = min(recipe.batch * recipe.accumulate, len(samples))
        self.epochs = None if recipe.steps else recipe.epochs
        self.steps = recipe.steps or -(-recipe.epochs * len(samples) // self.size)
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self._settings: dict[str, Any] | None = None

    def precision(self) -> AbstractContextManager:
        """Autocast for a model in bf16: its adapters, kept in fp32, compute in bf16."""
        if self.model.dtype != torch.bfloat16:
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)

    def batches(self, samples: list[Sample]) -> Iterator[Batch]:
        """This process's share of some samples, as Batch after Batch."""
        assert self.vlm.tokenizer is not None
        mine = samples[self.processes.rank :: self.processes.count]
        for first in range(0, len(mine), self.recipe.batch):
            chosen = mine[first : first + self.recipe.batch]
            yield make_batch(chosen, self.vlm.tokenizer, self.vlm.config)

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """Within this block random numbers depend on seed, step and process alone."""
        parts = [self.recipe.seed, self.processes.rank, self.step + 1]
        device = self.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(np.random.default_rng(parts).integers(2**63)))
            yield

    def loss(self, batch: Batch) -> torch.Tensor:
        """The summed loss of a batch's answers, fp32 scalar; a subclass may change it."""
        with self.precision():
            logits, labels = answer_logits(self.model, batch)
        return F.cross_entropy(logits, labels, reduction="sum")

    def train_step(self) -> None:
        """Learn from the samples of one step, and note in the history how it went.

        The loss is the mean over all tokens of all answers of the step, in however many
        batches and processes they are: each adds its sum, divided by the step's count.

        Raises:
            InputError: the loss is no number any more.
        """
        begin, count = time.monotonic(), len(self.samples)
        indices = indices_of_step(
            self.step, self.size, count, self.recipe.seed, self.epochs
        )
        chosen = [self.samples[i] for i in indices]
        num_tokens = sum(sample.num_answer_tokens for sample in chosen)
        parameters = list(self.parameters.values())
        for parameter in parameters:  # also of those that no sample uses
            parameter.grad = torch.zeros_like(parameter)
        total = torch.zeros(1, device=self.model.device)
        with self.randomness(), torch.enable_grad():
            for batch in self.batches(chosen):
                loss = self.loss(batch) / num_tokens
                loss.backward()
                total += loss.detach()
        self._add_up([total, *(parameter.grad for parameter in parameters)])
        if not total.isfinite():
            raise InputError(
                f"The loss of step {self.step + 1} is {total.item()}: expected a "
                "number; lower the learning rate, or train in float32."
            )
        rate = learning_rate(self.recipe, self.step, self.steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
        self.optimiser.step()
        self.step += 1
        self.note(
            learning_rate=rate,
            loss=total.item(),
            gradient_norm=norm.item(),
            tokens=num_tokens,
            seconds=time.monotonic() - begin,
        )

    def _add_up(self, tensors: list[Any]) -> None:
        """Sum tensors over all processes, in place and in one exchange."""
        joined = self.processes.sum(torch.cat([t.flatten() for t in tensors]))
        for tensor, part in zip(tensors, joined.split([t.numel() for t in tensors])):
            tensor.copy_(part.view_as(tensor))

    def note(self, **measured: float) -> None:
        """Add to the history's row of this step, which is made if it is not there."""
        if not self.history or self.history[-1]["step"] != self.step:
            seen = self.step * self.size
            if self.epochs:
                seen = min(seen, self.epochs * len(self.samples))
            row: dict[str, Any] = dict.fromkeys(COLUMNS)
            row |= {"step": self.step, "epoch": seen / len(self.samples)}
            self.history.append(row)
        self.history[-1] |= measured

    @torch.no_grad()
    def measure(self) -> None:
        """Note the loss on what is held out, and the share of answers that are right.

        The adapter with the lowest loss so far is kept as `best`.

        An answer is what greedy writing would give, to the letter, if and only if each
        of its tokens, its end too, is the likeliest one after those before it. So one
        pass tells both, and nothing has to be written.
        """
        assert self.vlm.tokenizer is not None
        sums = torch.zeros(3, device=self.model.device)  # loss, right answers, answers
        self.model.eval()
        for batch in self.batches(self.held_out):
            with self.precision():
                logits, labels = answer_logits(self.model, batch)
            ends = labels == self.vlm.tokenizer.special["<|eot_id|>"]
            number = ends.cumsum(0) - ends.long()  # of the answer a token is part of
            wrong = number[logits.argmax(dim=-1) != labels].unique()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            sums += torch.stack([loss, ends.sum() - len(wrong), ends.sum()])
        self.model.train()
        self._add_up([sums])
        num_tokens = sum(sample.num_answer_tokens for sample in self.held_out)
        loss, right, answers = sums.tolist()
        loss = loss / num_tokens
        self.note(held_out_loss=loss, held_out_right=right / answers)
        if self.step and loss < (self.best["loss"] if self.best else math.inf):
            self.best = {"step": self.step, "loss": loss, "adapter": self.adapter()}

    def adapter(self) -> dict[str, torch.Tensor]:
        """A copy of the adapter as it is now."""
        return {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def use_best(self) -> None:
        """Make the adapter the best that was measured, if anything was."""
        best: dict[str, torch.Tensor] = self.best["adapter"] if self.best else {}
        for name, value in best.items():
            self.parameters[name].copy_(value)

    def settings(self) -> dict:
        """What must be the same to go on: the recipe, the model, the samples."""
        if self._settings is None:
            self._settings = as_stored(self.recipe) | {
                "dtype": str(self.model.dtype).removeprefix("torch."),
                "a model of checksum": weights_checksum(self.model)[:16],
                "samples of checksum": samples_checksum(self.samples, self.held_out),
            }
        return self._settings

    def state(self) -> dict:
        """Everything that `load` needs to go on from here.

        Schedule, order and random numbers are functions of the seed and the step.
        """
        return {
            "settings": self.settings(),
            "step": self.step,
            "history": self.history,
            "adapter": {name: p.detach() for name, p in self.parameters.items()},
            "optimiser": self.optimiser.state_dict(),
            "best": self.best,
        }

    def save(self, path: Path) -> None:
        """Write the state to a file, see `save_state`."""
        save_state(path, self.state())

    @torch.no_grad()
    def load(self, path: Path) -> None:
        """Go on from where `save` was called.

        Raises:
            InputError: it was called with other settings; see `load_state`.
        """
        state = load_state(path, self._check, self.model.device)
        if state["step"] == 0:
            return  # it only says whose folder this is
        check_settings(path, state["settings"], self.settings())
        self.optimiser.load_state_dict(state["optimiser"])
        for name, parameter in self.parameters.items():
            parameter.copy_(state["adapter"][name])
        self.step, self.history = state["step"], state["history"]
        self.best = state["best"]

    def _check(self, state: dict) -> None:
        """Whether a state is of this training's form; see `load_state`."""
        mine = self.state()
        if state.keys() != mine.keys() or type(state["step"]) is not int:
            raise Unlike("it has other keys")
        if state["settings"] != mine["settings"]:
            check_keys(state["settings"], mine["settings"], "the settings")
            return  # which `load` says in its own words
        step, rows, best = state["step"], state["history"], state["best"]
        if not 0 <= step <= self.steps:
            raise Unlike(f"step {step} of {self.steps}")
        check_alike(state["adapter"], mine["adapter"], "the adapter")
        check_optimiser(state["optimiser"], self.optimiser, step)
        if best is not None:
            like = {"step": 0, "loss": 0.0, "adapter": mine["adapter"]}
            check_alike(best, like, "the best adapter")
        steps = [row["step"] for row in rows]
        begin = step + 1 - len(rows)  # 0 where something was measured before
        if begin not in (0, 1) or steps != list(range(begin, step + 1)):
            raise Unlike("its history has other steps")
        for row in rows:
            if tuple(row) != COLUMNS or not all(
                value is None or type(value) in (int, float) for value in row.values()
            ):
                raise Unlike("its history has other columns")


CHUNK = 2**22  # numbers


@torch.no_grad()
def weights_checksum(model: Mllama) -> str:
    """Hexadecimal digits that tell a model's weights, all of them, from others.

    Sums of whole numbers are exact on every device and as fast as memory: each number's
    bits, taken as a whole number, times an odd one that says where it stands. One that
    changes always changes its sum.
    """
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    digest, odd = hashlib.sha256(), torch.arange(1, 2 * CHUNK, 2, device=model.device)
    for parameter in base_parameters(model):
        bits = parameter.detach().flatten().view(whole[parameter.dtype.itemsize])
        sums = [(c.long() * odd[: len(c)]).sum() for c in bits.split(CHUNK)]
        digest.update(f"{parameter.dtype}{list(parameter.shape)}".encode())
        digest.update(repr(torch.stack(sums).tolist()).encode())
    return digest.hexdigest()


def samples_checksum(*parts: list[Sample]) -> str:
    """Of the samples' tokens and labels, and of the bytes of their pictures."""
    digest, pictures = hashlib.sha256(), {}
    for sample in (sample for samples in parts for sample in samples):
        for path in sample.images:
            if path not in pictures:
                with system_errors(path, "read"), open(path, "rb") as file:
                    pictures[path] = hashlib.file_digest(file, "sha256").hexdigest()
        names = [(path.name, pictures[path]) for path in sample.images]
        digest.update(repr((names, sample.tokens, sample.labels)).encode())
    return digest.hexdigest()[:16]
