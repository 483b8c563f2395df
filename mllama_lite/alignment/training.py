"""Teaching a language model to read what an encoder sees: first the projector, then more.

Phase 2 trains the projector alone, on captions: encoder and language model stay as they
were. Phase 3 goes on with questions and lets the language model learn too. Both can stop
anywhere, see `Resumable`.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mllama_lite.adapters.data import indices_of_step
from mllama_lite.adapters.lora import make_pairs, put_adapter, train_only, use_adapters
from mllama_lite.alignment.captions import Record
from mllama_lite.alignment.examples import encode_record
from mllama_lite.alignment.measuring import Speaker, measure
from mllama_lite.errors import InputError, shown
from mllama_lite.files import system_errors, written_aside
from mllama_lite.resumable import NOTE_EVERY, Resumable, decayed, quick_arithmetic
from mllama_lite.training_folder import (
    STATE,
    as_stored,
    check_out,
    checksum,
    only_training,
)


SAVE_EVERY = 100  # steps
PARTS = ("projector", "lora", "all")
PROJECTOR, MODEL, HISTORY = "projector.safetensors", "model.safetensors", "history.json"


@dataclass(frozen=True)
class AlignPlan:
    """What decides how such a training goes; whoever changes it begins anew.

    Attributes:
        seed: of the order, and of LoRA's first values.
        steps: of the optimiser.
        batch: records in a step.
        rate: the highest learning rate: reached after `warmup` steps, held until `decay`
            of the steps are left, then down in a line.
        warmup, decay: in steps, and as a share of the steps.
        learns: "projector"; "lora": it and low-rank adapters on the language model's
            matrices; "all": it and the language model.
        rank: of the adapters.

    Raises:
        InputError: a setting is out of its range.
    """

    seed: int = 0
    steps: int = 1500
    batch: int = 16
    rate: float = 1e-3
    warmup: int = 50
    decay: float = 0.5
    learns: str = "projector"
    rank: int = 8

    def __post_init__(self) -> None:
        for name, least in (
            ("seed", 0),
            ("steps", 1),
            ("batch", 1),
            ("warmup", 0),
            ("rank", 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 2**63:
                raise InputError(
                    f"{name} is {shown(value)}: expected a whole number, {least} or "
                    "more; change it."
                )
        for name, above in (("rate", 0.0), ("decay", -1.0)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not above < value <= 1 or value < 0:
                raise InputError(
                    f"{name} is {shown(value)}: expected a number from 0 to 1; change it."
                )
        if self.learns not in PARTS:
            raise InputError(
                f"learns is {shown(self.learns)}: expected one of {', '.join(PARTS)}; "
                "change it."
            )

    def learning_rate(self, step: int) -> float:
        """At one of the steps: up, level, and down to a fiftieth."""
        left = (1 - step / self.steps) / self.decay if self.decay else 1.0
        up = (step + 1) / self.warmup if self.warmup else 1.0
        return self.rate * min(1.0, up, max(0.02, left))


def add_lora(model: Any, rank: int, seed: int) -> nn.ModuleDict:
    """Give every matrix of a language model's layers a pair of low rank, all trained.

    Args:
        model: LanguageModel or Llama4; its layers are wrapped in place, see chapter 12.
        rank: r.
        seed: of the first values.

    Returns:
        ModuleDict of the pairs.
    """
    shapes = {
        name: (part.in_features, part.out_features, rank, 2.0 * rank, 0.0)
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name.endswith("_proj")
    }
    pairs = make_pairs(model, shapes)
    generator = torch.Generator().manual_seed(seed)
    for pair in pairs.values():
        pair.first_values(generator)
    put_adapter(model, "default", pairs)
    use_adapters(model, "default")
    train_only(model, "default")
    return nn.ModuleDict({n.replace(".", "/"): pair for n, pair in pairs.items()})


class AlignmentTrainer(Resumable):
    """A projector in training, and what else the plan lets learn.

    Args:
        plan: AlignPlan.
        speaker: Speaker; its projector learns where it is, and its model if the plan
            says so. What does not learn has no gradient afterwards.
        records: what is learned.
        held_out: what is measured, a list of Record for each name.
    """

    def __init__(
        self,
        plan: AlignPlan,
        speaker: Speaker,
        records: Sequence[Record],
        held_out: dict[str, list[Record]] | None = None,
    ) -> None:
        self.plan, self.speaker, self.held_out = plan, speaker, held_out or {}
        self.examples = [encode_record(r, speaker.tokenizer) for r in records]
        data = [
            [*map(str, r.images), *e.tokens] for r, e in zip(records, self.examples)
        ]
        settings = as_stored(plan) | {
            "model": checksum(dict(speaker.model.state_dict())),
            "projector": checksum(dict(speaker.projector.state_dict())),
            "records": checksum(data),
            "features": speaker.features.checksum,
        }
        modules: dict[str, nn.Module] = {"projector": speaker.projector}
        speaker.model.requires_grad_(plan.learns == "all")
        if plan.learns == "lora":
            modules["adapter"] = add_lora(speaker.model, plan.rank, plan.seed)
        elif plan.learns == "all":
            modules["model"] = speaker.model
        speaker.projector.requires_grad_(True)
        parameters = {
            f"{name}.{inner}": parameter
            for name, module in modules.items()
            for inner, parameter in module.named_parameters()
        }
        optimiser = torch.optim.AdamW(
            decayed(parameters), betas=(0.9, 0.95), weight_decay=0.1, fused=True
        )
        super().__init__(settings, plan.steps, modules, optimiser, 3)

    def train_step(self) -> torch.Tensor:
        """Learn from the records of one step. Returns the loss, fp32 scalar."""
        begin, plan = time.process_time(), self.plan
        numbers = indices_of_step(self.step, plan.batch, len(self.examples), plan.seed)
        some = [self.examples[n] for n in numbers]
        with quick_arithmetic(self.sums.device):
            images = self.speaker.see([p for example in some for p in example.images])
            losses, counts = self.speaker.losses(some, images)
            loss = losses.sum() / counts.sum()
        self.learn(loss, plan.learning_rate(self.step))
        spent = loss.new_tensor([1.0, time.process_time() - begin])
        self.sums += torch.cat([spent, loss.detach()[None]])
        if self.step % NOTE_EVERY == 0:
            count, seconds, total = self.sums.tolist()
            note = {"step": self.step, "loss": total / count, "seconds": seconds}
            self.history.append(note)
            self.sums.zero_()
        return loss.detach()

    def measure(self) -> None:
        """Note in the history what `measure` finds on the records that are held out."""
        found = {name: measure(self.speaker, of) for name, of in self.held_out.items()}
        self.history[-1]["held_out"] = found


def align(
    folder: str | PathLike,
    speaker: Speaker,
    records: Sequence[Record],
    plan: AlignPlan = AlignPlan(),
    held_out: dict[str, list[Record]] | None = None,
    progress: Callable[[AlignmentTrainer], object] | None = None,
    measure_every: int = 250,
) -> AlignmentTrainer:
    """Train a projector, with the plan's parts, or go on where a call was stopped.

    Every 100 steps the state is written to `training.pt` in the folder. The same settings
    give the same numbers on the same processor with as many threads, however often it was
    stopped.

    Args:
        folder: path; made if it is not there. At the end it holds
            `projector.safetensors` and `history.json`, and `model.safetensors` if the
            language model has learned; an adapter is merged into it.
        speaker: Speaker, which is trained where it is.
        records: what is learned: captions, questions or conversations.
        plan: AlignPlan.
        held_out: measured every so many steps, see `AlignmentTrainer`.
        progress: called with the AlignmentTrainer after every step, or None.
        measure_every: steps, a multiple of 50.

    Returns:
        AlignmentTrainer, at its end.

    Raises:
        InputError: see `check_out` and `only_training` for the folder; it holds another
            training, or a damaged one; there is nothing to learn; a picture has no
            features.
    """
    folder = check_out(folder)
    check_records(
        speaker, [*records, *(r for of in (held_out or {}).values() for r in of)]
    )
    if (
        type(measure_every) is not int
        or measure_every < 1
        or measure_every % NOTE_EVERY
    ):
        raise InputError(
            f"measure_every is {shown(measure_every)}: expected a multiple of "
            f"{NOTE_EVERY} steps; change it."
        )
    if not records:
        raise InputError(
            "There is no record to learn from: expected one at least; give captions."
        )
    with only_training(folder):
        trainer = AlignmentTrainer(plan, speaker, records, held_out)
        state = folder / STATE
        if state.is_file():
            trainer.load(state)
        else:
            trainer.save(state)  # from now on the folder is this training's
        while trainer.step < plan.steps:
            trainer.train_step()
            last = trainer.step == plan.steps
            if trainer.step % measure_every == 0 and trainer.held_out:
                trainer.measure()
            if trainer.step % SAVE_EVERY == 0 or last:
                trainer.save(state)
            if progress:
                progress(trainer)
        write_results(folder, trainer)
    return trainer


def check_records(speaker: Speaker, records: Sequence[Record]) -> None:
    """Refuse pictures that the encoder has not looked at."""
    for record in records:
        for path in record.images:
            if str(path) not in speaker.features.row:
                raise InputError(
                    f"{record.where} has the picture {path}, which has no features: "
                    "expected all pictures encoded; call encode with them first."
                )


def write_results(folder: Path, trainer: AlignmentTrainer) -> None:
    """Write what has been learned, and how it went."""
    model = trainer.speaker.model
    with written_aside(folder / PROJECTOR) as part:
        save_file(contiguous(trainer.speaker.projector), part, {"format": "pt"})
    if trainer.plan.learns != "projector":
        with written_aside(folder / MODEL) as part:
            save_file(merged(model), part, {"format": "pt"})
    with written_aside(folder / HISTORY) as part:
        part.write_text(json.dumps(trainer.history) + "\n", encoding="utf-8")


def contiguous(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's numbers, each in memory of its own."""
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def merged(model: Any) -> dict[str, torch.Tensor]:
    """A language model's numbers under the names without adapters, these added."""
    state = contiguous(model)
    found = {n: t for n, t in state.items() if ".adapters." not in n}
    for name, part in model.named_modules():
        if hasattr(part, "adapters"):
            weight = found.pop(f"{name}.base.weight")
            found[f"{name}.weight"] = (
                weight + part.adapters["default"].product().detach()
            )
    return found


def load_speaker(folder: str | PathLike, speaker: Speaker) -> None:
    """Read what `align` wrote into a speaker of the same sizes, without adapters.

    Raises:
        InputError: a file is missing, damaged, or of other sizes.
    """
    folder = Path(folder)
    files = {PROJECTOR: speaker.projector}
    if (folder / MODEL).exists():
        files[MODEL] = speaker.model
    for name, module in files.items():
        with system_errors(folder / name, "read"):
            state = load_file(folder / name)
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise InputError(
                f"{folder / name} does not fit ({first}): expected the numbers of a "
                f"{type(module).__name__} of these sizes; give the same settings."
            ) from None
