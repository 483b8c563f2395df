# Generated from notebooks/13_finetuning.ipynb: edit there, or here and run `make update`.
"""Fine-tuning: train an adapter on a folder of images and questions.

Built in chapter 13, notebooks/13_finetuning.ipynb. The folder of a training is checked
before anything expensive is done, and kept such that the training can go on from it.
"""

import csv
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from mllama_lite.adapters.data import (
    Sample,
    hold_out,
    read_samples,
)
from mllama_lite.adapters.lora import (
    adapter_names,
    adapter_size,
    add_adapter,
    remove_adapters,
)
from mllama_lite.adapters.peft_files import save_adapter
from mllama_lite.adapters.processes import Processes, training_dtype
from mllama_lite.adapters.recipe import ALPHA, Recipe, chosen, unwritten
from mllama_lite.adapters.training import (
    COLUMNS,
    Trainer,
    recomputed,
)
from mllama_lite.adapters.verdict import some_of, told, verdict
from mllama_lite.checkpoints.hub import find_folder, find_tokenizer
from mllama_lite.checkpoints.loading import open_checkpoint
from mllama_lite.devices import find_dtype, free_memory
from mllama_lite.errors import InputError, shown
from mllama_lite.files import system_errors, written_aside
from mllama_lite.model import Mllama, empty_model
from mllama_lite.training_folder import (
    STATE,
    check_out,
    load_state,
    only_training,
)
from mllama_lite.vlm import VLM, load


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
