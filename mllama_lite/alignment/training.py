# Generated from notebooks/20_alignment.ipynb: edit there, or here and run `make update`.
"""Teaching a language model to read what an encoder sees: first the projector, then more.

Built in chapter 20, notebooks/20_alignment.ipynb. Phase 2 trains the projector alone,
on captions: encoder and language model stay as they were. Phase 3 goes on with
questions and lets the language model learn too. Both can stop anywhere, see
`Resumable`.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike

import torch
from torch import nn

from mllama_lite.adapters.data import indices_of_step
from mllama_lite.alignment.captions import PLACE, Record
from mllama_lite.alignment.examples import encode_record, questions
from mllama_lite.alignment.measuring import measure
from mllama_lite.alignment.speakers import Speaker, add_lora, save_speaker
from mllama_lite.errors import InputError, shown
from mllama_lite.files import written_aside
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
HISTORY = "history.json"


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
        save_speaker(speaker, folder, with_model=plan.learns != "projector")
        with written_aside(folder / HISTORY) as part:
            part.write_text(json.dumps(trainer.history) + "\n", encoding="utf-8")
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


def instruct(
    folder: str | PathLike,
    speaker: Speaker,
    records: Sequence[Record],
    plan: AlignPlan = AlignPlan(learns="lora"),
    held_out: dict[str, list[Record]] | None = None,
    progress: Callable[[AlignmentTrainer], object] | None = None,
    measure_every: int = 250,
) -> AlignmentTrainer:
    """Go on from an aligned speaker with questions and answers.

    Args:
        folder, speaker, plan, held_out, progress, measure_every: see `align`; what is held
            out are captions, so that it is seen what is kept of them.
        records: conversations; captioned pictures with a concept are asked four templated
            questions each, see `questions`.

    Returns:
        AlignmentTrainer, at its end.

    Raises:
        InputError: see `align` and `questions`.
    """
    captions = [r for r in records if r.messages[0]["content"] == PLACE]
    concepts = sorted({r.about.get("concept", "") for r in captions} - {""})
    asked = questions(captions, concepts, plan.seed) if captions else []
    told = [r for r in records if r.messages[0]["content"] != PLACE]
    return align(folder, speaker, told + asked, plan, held_out, progress, measure_every)
