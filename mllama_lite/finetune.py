"""Fine-tuning: train an adapter on a folder of images and questions.

Built in chapter 13, notebooks/13_finetuning.ipynb. A step is a function of the seed and
its number, so that training can stop anywhere and go on as if it had not.
"""

import csv
import hashlib
import json
import math
import os
import time
import zipfile
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from numbers import Real
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mllama_lite.adapter_files import save_adapter
from mllama_lite.checkpoint import open_checkpoint
from mllama_lite.errors import InputError
from mllama_lite.inference import (
    VLM,
    find_device,
    find_dtype,
    find_folder,
    find_tokenizer,
    load,
)
from mllama_lite.lora import add_adapter, adapter_names, remove_adapters
from mllama_lite.samples import (
    answer_logits,
    hold_out,
    indices_of_step,
    make_batch,
    read_samples,
)


@dataclass(frozen=True)
class Recipe:
    """What decides how a fine-tuning goes; whoever changes it begins anew.

    Attributes:
        targets, rank, alpha, dropout: of the adapter, see `add_adapter`.
        epochs: how often every sample is seen.
        steps: steps of the optimiser instead of epochs, or None.
        lr: the highest learning rate.
        warmup: share of the steps in which the learning rate rises to it.
        batch: samples at once, which memory limits.
        accumulate: how many such batches make a step.
        clip: longest gradient; longer ones are shortened.
        held_out: share of the samples that are measured, not learned, where the data
            has no `validation` folder.
        max_length: tokens that a sample may have; None for the model's context.
        seed: of first values, order, dropout and what is held out.

    Raises:
        InputError: a setting is out of its range.
    """

    targets: tuple[str, ...] = ("self", "mlp", "cross")
    rank: int = 8
    alpha: float = 16
    dropout: float = 0.0
    epochs: int = 3
    steps: int | None = None
    lr: float = 2e-4
    warmup: float = 0.05
    batch: int = 4
    accumulate: int = 1
    clip: float = 1.0
    held_out: float = 0.1
    max_length: int | None = None
    seed: int = 0

    def __post_init__(self):
        for name in ("epochs", "steps", "batch", "accumulate", "max_length", "seed"):
            value, least = getattr(self, name), 0 if name == "seed" else 1
            if value is None and name in ("steps", "max_length"):
                continue
            if type(value) is not int or value < least:
                raise InputError(
                    f"{name} is {value!r}: expected a whole number, {least} or more; "
                    "change it."
                )
        for name, fits, expected in (
            ("lr", lambda x: 0 < x < math.inf, "a number above 0"),
            ("clip", lambda x: x > 0, "a number above 0"),
            ("warmup", lambda x: 0 <= x <= 1, "a number from 0 to 1"),
            ("held_out", lambda x: 0 <= x < 1, "a number from 0 up to 1"),
        ):
            value = getattr(self, name)
            if not isinstance(value, Real) or not fits(value):
                raise InputError(
                    f"{name} is {value!r}: expected {expected}; change it."
                )


def learning_rate(recipe, step, steps):
    """At one of the steps: up in a line, then down to almost 0 along half a cosine."""
    rising = round(recipe.warmup * steps)
    if step < rising:
        return recipe.lr * (step + 1) / rising
    done = (step - rising) / (steps - rising)
    return recipe.lr * (1 + math.cos(math.pi * done)) / 2


@contextmanager
def recomputed(model):
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
        InputError: several were started, and accelerate is not installed.
    """

    def __init__(self, device=None):
        self.accelerator, self.count, self.rank = None, 1, 0
        if int(os.environ.get("WORLD_SIZE", 1)) == 1:
            self.device = find_device(device)
            return
        try:
            from accelerate import Accelerator
        except ImportError:
            raise InputError(
                "Several processes were started and accelerate is not installed: "
                "expected it for training on several devices; pip install accelerate."
            ) from None
        on_cpu = str(device) == "cpu" or not torch.cuda.is_available()
        self.accelerator = Accelerator(cpu=on_cpu)
        self.count = self.accelerator.num_processes
        self.rank = self.accelerator.process_index
        self.device = self.accelerator.device  # each has its own

    def sum(self, tensor):
        """The sum of a tensor over all processes."""
        if self.accelerator is None:
            return tensor
        return self.accelerator.reduce(tensor, "sum")


def training_dtype(device, dtype=None):
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


COLUMNS = ("step", "epoch", "learning_rate", "loss", "gradient_norm", "tokens")
COLUMNS += ("seconds", "held_out_loss", "held_out_right")


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
        history: list of dicts with COLUMNS, one a step; None where nothing was
            measured. `tokens` are those of the answers, over which the loss is a mean;
            `seconds` are those of the step alone.
    """

    def __init__(self, vlm, samples, held_out, recipe, processes):
        self.vlm, self.model, self.recipe = vlm, vlm.model.train(), recipe
        self.samples, self.held_out, self.processes = samples, held_out, processes
        named = self.model.named_parameters()
        self.parameters = {name: p for name, p in named if p.requires_grad}
        # Without decay: an adapter that shrinks is one that forgets.
        self.optimiser = torch.optim.AdamW(self.parameters.values(), weight_decay=0.0)
        self.size = recipe.batch * recipe.accumulate  # samples of a step
        self.epochs = None if recipe.steps else recipe.epochs
        self.steps = recipe.steps or -(-recipe.epochs * len(samples) // self.size)
        self.step, self.history = 0, []

    def precision(self):
        """Autocast for a model in bf16: its adapters, kept in fp32, compute in bf16."""
        if self.model.dtype != torch.bfloat16:
            return nullcontext()
        return torch.autocast(self.model.device.type, torch.bfloat16)

    def batches(self, samples):
        """This process's share of some samples, as Batch after Batch."""
        mine = samples[self.processes.rank :: self.processes.count]
        for first in range(0, len(mine), self.recipe.batch):
            chosen = mine[first : first + self.recipe.batch]
            yield make_batch(chosen, self.vlm.tokenizer, self.vlm.config)

    @contextmanager
    def randomness(self):
        """Within this block random numbers depend on seed, step and process alone."""
        parts = [self.recipe.seed, self.processes.rank, self.step + 1]
        device = self.model.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(int(np.random.default_rng(parts).integers(2**63)))
            yield

    def train_step(self):
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
                with self.precision():
                    logits, labels = answer_logits(self.model, batch)
                loss = F.cross_entropy(logits, labels, reduction="sum") / num_tokens
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

    def _add_up(self, tensors):
        """Sum tensors over all processes, in place and in one exchange."""
        joined = self.processes.sum(torch.cat([t.flatten() for t in tensors]))
        for tensor, part in zip(tensors, joined.split([t.numel() for t in tensors])):
            tensor.copy_(part.view_as(tensor))

    def note(self, **measured):
        """Add to the history's row of this step, which is made if it is not there."""
        if not self.history or self.history[-1]["step"] != self.step:
            seen = self.step * self.size
            if self.epochs:
                seen = min(seen, self.epochs * len(self.samples))
            row = dict.fromkeys(COLUMNS)
            row |= {"step": self.step, "epoch": seen / len(self.samples)}
            self.history.append(row)
        self.history[-1] |= measured

    @torch.no_grad()
    def measure(self):
        """Note the loss on what is held out, and the share of answers that are right.

        An answer is what greedy writing would give, to the letter, if and only if each
        of its tokens, its end too, is the likeliest one after those before it. So one
        pass tells both, and nothing has to be written.
        """
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
        self.note(held_out_loss=loss / num_tokens, held_out_right=right / answers)

    def settings(self):
        """What must be the same to go on: the recipe, the model, the samples."""
        samples = hashlib.sha256()
        for one in self.samples + self.held_out:
            names = [path.name for path in one.images]
            samples.update(repr((names, one.tokens, one.labels)).encode())
        weights = self.model.language_model.lm_head.weight[:64].detach().float()
        model = hashlib.sha256(weights.cpu().numpy().tobytes())
        # As a file gives it back: tuples become lists.
        return json.loads(json.dumps(asdict(self.recipe))) | {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "a model of checksum": model.hexdigest()[:8],
            "samples of checksum": samples.hexdigest()[:8],
        }

    def save(self, path):
        """Write everything to a file, aside and then renamed: no state is half there.

        Schedule, order and random numbers are functions of the seed and the step.
        """
        state = {
            "settings": self.settings(),
            "step": self.step,
            "history": self.history,
            "adapter": {name: p.detach() for name, p in self.parameters.items()},
            "optimiser": self.optimiser.state_dict(),
        }
        part = path.with_suffix(".part")
        torch.save(state, part)
        os.replace(part, path)

    def load(self, path):
        """Go on from where `save` was called.

        Raises:
            InputError: it was called with other settings; the file is damaged.
        """
        try:
            # torch leaves the checksums of its own files unread.
            if damaged := zipfile.ZipFile(path).testzip():
                raise zipfile.BadZipFile(damaged)
            state = torch.load(path, self.model.device, weights_only=True)
            theirs, mine = state["settings"], self.settings()
            other = [name for name in mine if theirs.get(name) != mine[name]]
            if not other:
                self.optimiser.load_state_dict(state["optimiser"])
                with torch.no_grad():
                    for name, parameter in self.parameters.items():
                        parameter.copy_(state["adapter"][name])
                self.step, self.history = state["step"], state["history"]
        except Exception as error:  # torch's reader raises many kinds
            raise InputError(
                f"{path} cannot be read ({type(error).__name__}): expected the state "
                "of a training; delete it to begin anew."
            ) from None
        if other:
            raise InputError(
                f"{path} was begun with {other[0]} {theirs.get(other[0])!r}: expected "
                f"{mine[other[0]]!r}, as now asked for; use the same settings, or "
                "another folder."
            )


def write_rows(path, rows, mode="a"):
    """Append rows of a history to a CSV file; mode "w" begins it."""
    with open(path, mode, newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if mode == "w":
            writer.writeheader()
        writer.writerows(rows)


def draw_loss(path, history):
    """A picture of the loss so far, if matplotlib is installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    axes = Figure(figsize=(7, 4), layout="constrained").add_subplot()
    for column, style in (("loss", "-"), ("held_out_loss", "o-")):
        points = [(r["step"], r[column]) for r in history if r[column] is not None]
        if points:
            axes.plot(*zip(*points), style, label=column.replace("_", " "))
            axes.legend()
    axes.set(xlabel="step", ylabel="loss")
    part = path.with_suffix(".part")
    axes.figure.savefig(part, format="png")
    os.replace(part, path)


def run(trainer, out, save_every=50, progress=None):
    """Train to the end; `out` is kept up to date by the first process alone."""
    first = trainer.processes.rank == 0
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
                draw_loss(out / "loss.png", trainer.history)
                trainer.save(out / "training.pt")
            if progress:
                progress(trainer)


def finetune(
    model,
    data,
    out,
    recipe=Recipe(),
    device=None,
    dtype=None,
    checkpointing=False,
    skip_bad=False,
    save_every=50,
    resume=False,
    progress=None,
    report=print,
):
    """Train an adapter, or go on where an earlier call was stopped.

    Every so many steps the state is written to `training.pt`. The same settings give
    the same adapter on the same processor with as many threads, however often it was
    stopped; several processes give it up to rounding, if there is no dropout.

    Args:
        model: VLM, which is trained where it is and in the dtype that it has; or a hub
            id or folder; None for the model that the package ships.
        data: see `read_samples`.
        out: path of a folder; made if it is not there. At the end it holds the adapter
            (see `load_adapter`), `metrics.csv` (see `Trainer`) and `loss.png`.
        recipe: Recipe.
        device: torch device or its name; None for CUDA if there is one.
        dtype: "bfloat16" or "float32"; None for bf16 on a GPU that has it.
        checkpointing: see `recomputed`.
        skip_bad: see `read_samples`.
        save_every: steps; the most that is ever lost.
        resume: insist on an earlier call to go on from.
        progress: called with the Trainer after every step, or None.
        report: called with texts that say what is trained, and on what; or None.

    Returns:
        VLM with the adapter, which is active and not merged.

    Raises:
        InputError: see `read_samples`, `load`, `training_dtype`, `add_adapter` and
            `Trainer.load`; a model with adapters or without a tokenizer; a folder that
            cannot be used.
    """
    given, out = model if isinstance(model, VLM) else None, Path(out)
    processes = Processes(given.model.device if given else device)
    first = processes.rank == 0
    say = report if report and first else lambda text: None
    check_folder(out, resume, save_every)
    folder = None if given else find_folder(model)
    config = given.config if given else open_checkpoint(folder).config
    tokenizer = given.tokenizer if given else find_tokenizer(folder)
    if tokenizer is None or given and adapter_names(given.model):
        what = "has adapters" if tokenizer else "has no tokenizer"
        raise InputError(
            f"The model {what}: expected a plain model with its tokenizer; add "
            "tokenizer.model to its folder, or take adapters off with remove_adapters."
        )
    # What is wrong with the data is said before gigabytes are loaded.
    longest, share = recipe.max_length, recipe.held_out
    samples, held_out = read_samples(data, tokenizer, config, longest, skip_bad, say)
    if not held_out:
        samples, held_out = hold_out(samples, share, recipe.seed)
    wanted = given.model.dtype if given else find_dtype(dtype)
    chosen = training_dtype(processes.device, wanted)
    vlm = given or load(folder, processes.device, chosen)
    names = ("targets", "rank", "alpha", "dropout", "seed")
    add_adapter(vlm.model, **{n: getattr(recipe, n) for n in names}, report=say)
    try:
        trainer = Trainer(vlm, samples, held_out, recipe, processes)
        if (out / "training.pt").is_file():
            trainer.load(out / "training.pt")
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
    except BaseException:
        remove_adapters(vlm.model)  # so that the same VLM can be given again
        raise
    finally:
        vlm.model.eval()
    if first:
        save_adapter(vlm.model, out, base=None if given else model)
    return vlm


def check_folder(out, resume, save_every):
    """Whether a folder can be trained in; it is made if it is not there."""
    if type(save_every) is not int or save_every < 1:
        raise InputError(
            f"save_every is {save_every!r}: expected a whole number of steps, 1 or "
            "more; change it."
        )
    if out.exists() and not out.is_dir():
        raise InputError(
            f"{out} is a file: expected a folder to train in; choose another name."
        )
    if not (out / "training.pt").is_file():
        if resume:
            raise InputError(
                f"{out} has no training.pt: expected a training to go on with; check "
                "the path, or begin anew without --resume."
            )
        if (out / "adapter_config.json").is_file():
            raise InputError(
                f"{out} holds an adapter without the state of its training: expected "
                "an empty folder or both; choose another, so that it is not lost."
            )
    out.mkdir(parents=True, exist_ok=True)


def agree(trainer, out):
    """Whether all processes are at the same step, as they are with one folder."""
    steps = trainer.processes.sum(
        torch.tensor(trainer.step, device=trainer.model.device)
    )
    if steps != trainer.step * trainer.processes.count:
        raise InputError(
            f"{out} is not at the same step for all processes: expected one folder "
            "that all machines share; put it on such a disk."
        )
