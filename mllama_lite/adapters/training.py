# Generated from notebooks/13_finetuning.ipynb: edit there, or here and run `make update`.
"""Fine-tuning: train an adapter on a folder of images and questions.

Built in chapter 13, notebooks/13_finetuning.ipynb. A step is a function of the seed and
its number, so that training can stop anywhere and go on as if it had not.
"""

import csv
import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from os import PathLike
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
    hold_out,
    indices_of_step,
    make_batch,
    read_samples,
)
from mllama_lite.adapters.lora import (
    adapter_names,
    adapter_size,
    add_adapter,
    base_parameters,
    remove_adapters,
)
from mllama_lite.adapters.peft_files import save_adapter
from mllama_lite.adapters.recipe import ALPHA, Recipe, chosen, learning_rate, unwritten
from mllama_lite.adapters.verdict import some_of, told, verdict
from mllama_lite.checkpoints.hub import find_folder, find_tokenizer
from mllama_lite.checkpoints.loading import open_checkpoint
from mllama_lite.devices import find_device, find_dtype, free_memory
from mllama_lite.errors import InputError, shown
from mllama_lite.files import system_errors, written_aside
from mllama_lite.model import Mllama, empty_model
from mllama_lite.training_folder import (
    STATE,
    Unlike,
    as_stored,
    check_alike,
    check_keys,
    check_optimiser,
    check_out,
    check_settings,
    load_state,
    only_training,
    save_state,
)
from mllama_lite.vlm import VLM, load


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


class Processes:
    """The processes that train together: this one, or those that Accelerate started.

    Args:
        device: torch device or its name; None for CUDA if there is one.

    Attributes:
        count, rank: how many there are, and which of them this is.
        device: torch device of this one.

    Raises:
        InputError: several were started, and accelerate is not installed, or the
            environment does not say where they meet.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.accelerator, self.count, self.rank = None, 1, 0
        if os.environ.get("WORLD_SIZE") in (None, "", "1"):
            self.device = find_device(device)
            return
        try:
            from accelerate import Accelerator
        except ImportError:
            raise InputError(
                "Several processes were started and accelerate is not installed: "
                "expected it for training on several devices; pip install accelerate."
            ) from None
        _check_environment()
        on_cpu = str(device) == "cpu" or not torch.cuda.is_available()
        try:
            self.accelerator = Accelerator(cpu=on_cpu)
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(
                f"The processes cannot meet ({type(error).__name__}): expected all of "
                "them at MASTER_ADDR and MASTER_PORT; start them with torchrun or "
                "accelerate launch."
            ) from None
        self.count = self.accelerator.num_processes
        self.rank = self.accelerator.process_index
        self.device = self.accelerator.device  # each has its own

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        if self.accelerator is None:
            return tensor
        return self.accelerator.reduce(tensor, "sum")


def _check_environment() -> None:
    """Whether everything is set that a process needs to find the others."""
    count = os.environ["WORLD_SIZE"]
    most: int | None = int(count) - 1 if re.fullmatch("[1-9][0-9]{0,5}", count) else 0
    limits = {"WORLD_SIZE": 10**6, "RANK": most, "LOCAL_RANK": most}
    for name, most in (limits | {"MASTER_PORT": 65535, "MASTER_ADDR": None}).items():
        value = os.environ.get(name)
        whole = value and re.fullmatch("[0-9]{1,6}", value)
        if not value or most is not None and not (whole and int(value) <= most):
            raise InputError(
                f"The environment has {name} {shown(value)} beside WORLD_SIZE "
                f"{shown(count)}: expected what a launcher sets; start the processes "
                "with torchrun or accelerate launch, or remove WORLD_SIZE."
            )


def training_dtype(
    device: torch.device, dtype: str | torch.dtype | None = None
) -> torch.dtype:
    """In what to train: bf16 where the device has it, else fp32.

    Args:
        device: torch device.
        dtype: what is asked for, see `find_dtype`; a CPU gets bf16 only if asked.

    Returns:
        torch dtype.

    Raises:
        InputError: fp16, whose range is too small for this model.
    """
    dtype = find_dtype(dtype)
    if dtype == torch.float16:
        raise InputError(
            "The dtype is float16: expected bfloat16 or float32 for training, as "
            "float16 overflows in this model; choose one of them."
        )
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = device.type == "cpu" and dtype is not None  # it can, but slowly
    return dtype or torch.bfloat16 if able else torch.float32


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


def write_rows(path: Path, rows: list[dict], mode: str = "a") -> None:
    """Append rows of a history to a CSV file; mode "w" begins it."""
    with system_errors(path, "written"), open(path, mode, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if mode == "w":
            writer.writeheader()
        writer.writerows(rows)


def draw_loss(path: Path, history: list[dict]) -> None:
    """A picture of the loss so far, if matplotlib is installed and nothing is amiss.

    It is made after the state is safe, and no training ends because of it.
    """
    try:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        for column, style in (("loss", "-"), ("held_out_loss", "o-")):
            points = [(r["step"], r[column]) for r in history if r[column] is not None]
            if points:
                axes.plot(*zip(*points), style, label=column.replace("_", " "))
                axes.legend()
        axes.set(xlabel="step", ylabel="loss")
        with written_aside(path) as part:
            figure.savefig(part, format="png")
    except Exception:  # a library of many parts, none of which the training needs
        pass


def run(
    trainer: Trainer,
    out: Path,
    save_every: int = 50,
    progress: Callable[[Trainer], object] | None = None,
) -> None:
    """Train to the end; `out` is kept up to date by the first process alone."""
    first = trainer.processes.rank == 0
    if first and trainer.step == 0:
        trainer.save(out / STATE)  # from now on the folder is this training's
    if trainer.step == 0 and trainer.held_out:
        trainer.measure()
    if first:  # rows after the state, of steps that are lost, go too
        write_rows(out / "metrics.csv", trainer.history, "w")
    while trainer.step < trainer.steps:
        epoch = trainer.history[-1]["epoch"] if trainer.history else 0
        trainer.train_step()
        row, last = trainer.history[-1], trainer.step == trainer.steps
        if trainer.held_out and (last or int(row["epoch"]) > int(epoch)):
            trainer.measure()
        if first:
            write_rows(out / "metrics.csv", [row])
            if last or trainer.step % save_every == 0:
                trainer.save(out / STATE)
                draw_loss(out / "loss.png", trainer.history)
            if progress:
                progress(trainer)


def finetune(
    model: VLM | str | Path | None,
    data: str | PathLike,
    out: str | PathLike,
    recipe: Recipe = Recipe(),
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    checkpointing: bool = False,
    skip_bad: bool = False,
    save_every: int = 50,
    resume: bool = False,
    progress: Callable[[Trainer], object] | None = None,
    report: Callable[[str], object] | None = print,
) -> VLM:
    """Train an adapter, or go on where an earlier call was stopped.

    Every so many steps the state is written to `training.pt`. The same settings give
    the same adapter on the same processor with as many threads, however often it was
    stopped; several processes give it up to rounding, if there is no dropout.

    Args:
        model: VLM, which is trained where it is and in the dtype that it has; or a hub
            id or folder; None for the model that the package ships.
        data: see `read_samples`.
        out: path of a folder; made if it is not there. At the end it holds the adapter
            (see `load_adapter`), `metrics.csv` (see `Trainer`) and `loss.png`. Of what
            was measured on held-out samples the adapter is the best.
        recipe: Recipe; what it leaves open is chosen for the model, see `chosen`.
        device: torch device or its name; None for CUDA if there is one.
        dtype: "bfloat16" or "float32"; None for bf16 on a GPU that has it.
        checkpointing: see `recomputed`.
        skip_bad: see `read_samples`.
        save_every: steps; the most that is ever lost.
        resume: insist on an earlier call to go on from.
        progress: called with the Trainer after every step, or None.
        report: called with texts that say what is trained, and on what, and at the end
            what it has changed; or None.

    Returns:
        VLM with the adapter, which is active and not merged.

    Raises:
        InputError: see `read_samples`, `load`, `training_dtype`, `add_adapter`,
            `check_out`, `only_training` and `Trainer.load`; a model with adapters or
            without a tokenizer; an adapter that does not fit into memory.
    """
    if not isinstance(recipe, Recipe):
        raise InputError(
            f"The recipe is {shown(recipe)}: expected a Recipe; make one, as "
            "Recipe(epochs=10)."
        )
    given, out = model if isinstance(model, VLM) else None, check_out(out)
    base = None if isinstance(model, VLM) else model
    check_calls(out, resume, save_every)
    processes = Processes(given.model.device if given else device)
    first = processes.rank == 0
    say = report if report and first else lambda text: None
    folder: Any = None if given else find_folder(base)
    config = given.config if given else open_checkpoint(folder).config
    tokenizer = given.tokenizer if given else find_tokenizer(folder)
    if tokenizer is None or given and adapter_names(given.model):
        what = "has adapters" if tokenizer else "has no tokenizer"
        raise InputError(
            f"The model {what}: expected a plain model with its tokenizer; add "
            "tokenizer.model to its folder, or take adapters off with remove_adapters."
        )
    # What is wrong with settings or data is said before gigabytes are loaded.
    plain = given.model if given else empty_model(config)
    check_size(plain, chosen(recipe, config), processes.device)
    longest, share = recipe.max_length, recipe.held_out
    samples, held_out = read_samples(data, tokenizer, config, longest, skip_bad, say)
    if not held_out:
        samples, held_out = hold_out(samples, share, recipe.seed)
    wanted = given.model.dtype if given else find_dtype(dtype)
    dtype = training_dtype(processes.device, wanted)
    with only_training(out) if first else nullcontext():
        vlm = given or load(folder, processes.device, dtype)
        recipe = settled(recipe, vlm, samples, out / STATE, processes, say)
        looked_at = some_of(held_out or samples) if report and first else []
        before = told(vlm, looked_at)
        names = ("targets", "rank", "alpha", "dropout", "seed")
        add_adapter(vlm.model, **{n: getattr(recipe, n) for n in names}, report=say)
        try:
            trainer = Trainer(vlm, samples, held_out, recipe, processes)
            if (out / STATE).is_file():
                trainer.load(out / STATE)
            if trainer.step:
                say(f"going on after step {trainer.step} of {trainer.steps}")
            agree(trainer, out)
            dtype = vlm.model.dtype
            say(
                f"{len(samples)} samples to learn from, {len(held_out)} held out; "
                f"{trainer.steps} steps in {str(dtype).removeprefix('torch.')} on "
                f"{vlm.model.device}"
                + (", which has no fast bfloat16" if wanted != dtype else "")
            )
            with recomputed(vlm.model) if checkpointing else nullcontext():
                run(trainer, out, save_every, progress)
            trainer.use_best()
        except BaseException:
            remove_adapters(vlm.model)  # so that the same VLM can be given again
            raise
        finally:
            vlm.model.eval()
        if first:
            with system_errors(out, "written"):
                save_adapter(vlm.model, out, base=base)
            if looked_at:
                say(verdict(trainer, looked_at, before, told(vlm, looked_at)))
    return vlm


def check_calls(out: Path, resume: bool, save_every: int) -> None:
    """Whether there is something to go on from, and how often it is saved."""
    if type(save_every) is not int or save_every < 1:
        raise InputError(
            f"save_every is {shown(save_every)}: expected a whole number of steps, 1 "
            "or more; change it."
        )
    if resume and not (out / STATE).is_file():
        raise InputError(
            f"{out} has no {STATE}: expected a training to go on with; check the path, "
            "or begin anew without --resume."
        )


def check_size(model: Mllama, recipe: Recipe, device: torch.device) -> None:
    """Whether an adapter, its gradients and AdamW's averages fit into what is free."""
    assert recipe.targets is not None  # see `chosen`
    need = 16 * adapter_size(model, recipe.targets, recipe.rank)  # four fp32 each
    free = free_memory(device)
    if free is not None and need > free:
        raise InputError(
            f"An adapter of rank {recipe.rank} needs {need / 2**30:,.1f} GiB for itself, "
            f"gradients and averages, and {free / 2**30:,.1f} GiB are free on {device}: "
            "expected less; choose a lower rank or fewer targets."
        )


def settled(
    recipe: Recipe,
    vlm: VLM,
    samples: list[Sample],
    state: Path,
    processes: Processes,
    say: Callable[[str], object],
) -> Recipe:
    """The recipe with nothing left open, and said what was chosen and why.

    An earlier call that is gone on with has chosen already.
    """
    why, share, earlier = "", 0.0, {}
    if recipe.targets is None and state.is_file():
        kept = load_state(state, lambda kept: None)
        if kept.get("step") and isinstance(kept.get("settings"), dict):
            earlier = {"targets": kept["settings"].get("targets")}
    if recipe.targets is None and not earlier:
        if processes.rank == 0:
            assert vlm.tokenizer is not None
            share = unwritten(vlm.model, vlm.tokenizer, samples, recipe.batch)
        share = processes.sum(torch.tensor(share, device=processes.device)).item()
        why = f" ({share:.0%} of the answers' tokens are never written by this model)"
    whole = chosen(replace(recipe, **earlier), vlm.config, share > 0.05)
    assert whole.targets is not None and whole.alpha is not None
    if None in (recipe.targets, recipe.lr):
        say(
            f"for a model of width {vlm.config.text.hidden_size}: learning rate "
            f"{whole.lr:.2g}, targets {', '.join(whole.targets)}{why}"
        )
    if whole.alpha != ALPHA * whole.rank:
        say(
            f"alpha / rank is {whole.alpha / whole.rank:g}, where it is usually {ALPHA}: "
            f"a step changes the model {whole.alpha / whole.rank / ALPHA:g} times as "
            f"much; leave alpha out to keep it as the rank changes"
        )
    return whole


def agree(trainer: Trainer, out: Path) -> None:
    """Whether all processes are at the same step, as they are with one folder."""
    steps = trainer.processes.sum(
        torch.tensor(trainer.step, device=trainer.model.device)
    )
    if steps != trainer.step * trainer.processes.count:
        raise InputError(
            f"{out} is not at the same step for all processes: expected one folder "
            "that all machines share; put it on such a disk."
        )
