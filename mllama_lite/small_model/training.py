# Generated from notebooks/11_training.ipynb: edit there, or here and run `make update`.
"""Training a small Llama 3.2 Vision from nothing, on scenes that are drawn as it goes.

Built in chapter 11, notebooks/11_training.ipynb. A batch is a function of the seed and
the number of the step, so that training can stop anywhere and go on as if it had not.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mllama_lite.checkpoints.loading import save_model
from mllama_lite.checkpoints.processor_files import write_processor_files
from mllama_lite.cross_attention import VisionContext
from mllama_lite.devices import find_device
from mllama_lite.errors import InputError, shown
from mllama_lite.files import system_errors, written_aside
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import Mllama
from mllama_lite.resumable import NOTE_EVERY, Resumable, decayed, quick_arithmetic
from mllama_lite.small_model.evaluation import Item, answers, exact_match, held_out
from mllama_lite.small_model.first_values import (
    initialise,
    make_ranks,
    share_places,
    small_config,
)
from mllama_lite.small_model.patches import (
    PATCH_TARGETS,
    PATCH_WEIGHTS,
    PatchHead,
    patch_targets,
)
from mllama_lite.small_model.pen import pen_masks
from mllama_lite.small_model.questions import UNKNOWN, WORDINGS, Question, ask
from mllama_lite.small_model.scenes import (
    KINDS,
    Scene,
    draw_row,
    draw_scene,
    load_masks,
)
from mllama_lite.tiles import canvases, image_to_tiles
from mllama_lite.tokenizer import NUM_SPECIAL_TOKENS, ImagePart, Tokenizer
from mllama_lite.training_folder import (
    STATE,
    as_stored,
    check_out,
    checksum,
    only_training,
)
from mllama_lite.vlm import VLM, load


def encode_turns(
    tokenizer: Tokenizer, questions: Sequence[Question], image: bool = True
) -> tuple[list[int], list[int]]:
    """A conversation about one image, with the next tokens of its answers as labels.

    Args:
        tokenizer: Tokenizer.
        questions: list of Question.
        image: whether there is an image; without one every answer is UNKNOWN.

    Returns:
        (tokens, labels), lists of equal length.
    """
    tokens = [tokenizer.bos_id]
    labels: list[int] = []
    for i, question in enumerate(questions):
        content = [ImagePart(), question.text] if image and i == 0 else question.text
        tokens += tokenizer.encode_message("user", content)[0]
        tokens += tokenizer.encode_header("assistant")
        labels += [-100] * (len(tokens) - 1 - len(labels))
        answer = tokenizer.encode(question.answer if image else UNKNOWN)
        answer.append(tokenizer.special["<|eot_id|>"])
        tokens += answer
        labels += answer
    return tokens, labels + [-100]


@dataclass
class SceneBatch:
    """What one step learns from.

    Attributes:
        pixel_values: fp32 [N, K, 3, S, S].
        aspect_ratio_ids: int [N].
        num_tiles: valid tiles of every image.
        patches: int [N, K·(P - 1), 7], see `patch_targets`.
        tokens: int [N·Q, T], padded on the right.
        labels: int [N·Q, T], the next token where it is part of an answer, else -100.
        sees: bool [N·Q, T, 1], see VisionContext.
    """

    pixel_values: torch.Tensor
    aspect_ratio_ids: torch.Tensor
    num_tiles: int
    patches: torch.Tensor
    tokens: torch.Tensor
    labels: torch.Tensor
    sees: torch.Tensor

    def to(self, device: torch.device) -> "SceneBatch":
        """The same batch on a device."""
        moved: dict[str, Any] = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in vars(self).items()
        }
        return SceneBatch(**moved)


@dataclass(frozen=True)
class Plan:
    """How to train; the defaults are the first training of the model that ships.

    Attributes:
        seed: of first values, scenes and questions.
        vision_steps: steps of the first stage, vision encoder and patch head alone.
        joint_steps: steps after it, of the whole model.
        decay_steps: how many of them, at the end, lower the learning rate to 0.
        images: of a batch, all with equally many tiles.
        questions: about each image.
        vision_rate, joint_rate: learning rates of the two stages.
        patch_weight: of the patch head's loss in the second stage.
        strength: of the distortion of what is drawn; held-out scenes have 1.
        weights: how often each kind of question is asked, in the order of WORDINGS.
        later_weights: the same from `later_step` on: more of what was lagging behind.
        later_step: a step of the second stage.
        kinds: of things that are drawn.
        num_things: on each picture of the second stage; None for 0 to 4.
        drawn: the share of scenes whose things are drawn with a pen, see `pen_masks`;
            those of the others are scans and filled shapes.
        rows: the share of the drawn scenes, where the canvas is a row or a column of
            tiles, whose things are written as a number is, see `draw_row`.
    """

    seed: int = 0
    vision_steps: int = 5000
    joint_steps: int = 7000
    decay_steps: int = 2500
    images: int = 16
    questions: int = 6
    vision_rate: float = 2e-3
    joint_rate: float = 1.5e-3
    patch_weight: float = 0.3
    strength: float = 2.0
    weights: tuple[float, ...] = (1.0, 1.0, 0.8, 1.0, 2.0, 1.2, 2.0, 1.6, 0.8)
    later_weights: tuple[float, ...] = (0.7, 2.0, 0.6, 0.5, 2.0, 1.5, 2.2, 1.0, 2.0)
    later_step: int = 7485
    kinds: tuple[str, ...] = KINDS
    num_things: int | None = None
    drawn: float = 0.0
    rows: float = 0.0

    def __post_init__(self) -> None:
        counts = {"seed": (0, 2**63 - 1), "images": (1, 10_000), "questions": (1, 100)}
        steps = ("vision_steps", "joint_steps", "decay_steps", "later_step")
        for name, (least, most) in (
            counts | dict.fromkeys(steps, (0, 10**12)) | {"num_things": (0, 100)}
        ).items():
            value = getattr(self, name)
            if name == "num_things" and value is None:
                continue
            if type(value) is not int or not least <= value <= most:
                raise InputError(
                    f"{name} is {shown(value)}: expected a whole number from {least} "
                    f"to {most}; change it."
                )
        for name, most in (
            ("vision_rate", 1),
            ("joint_rate", 1),
            ("patch_weight", 1000),
            ("strength", 100),
            ("drawn", 1),
            ("rows", 1),
        ):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= most:
                raise InputError(
                    f"{name} is {shown(value)}: expected a number from 0 to {most}; "
                    "change it."
                )
        for name in ("weights", "later_weights"):
            value = getattr(self, name)
            kinds = {type(one) for one in value} if isinstance(value, tuple) else {None}
            fits = kinds <= {int, float} and len(value) == len(WORDINGS)
            if not fits or not all(0 <= x < math.inf for x in value) or not any(value):
                raise InputError(
                    f"{name} are {shown(value)}: expected a tuple of {len(WORDINGS)} "
                    "numbers, 0 or more and not all of them 0; change them."
                )
        if (
            not isinstance(self.kinds, tuple)
            or not self.kinds
            or not all(kind in KINDS for kind in self.kinds)
        ):
            raise InputError(
                f"kinds are {shown(self.kinds)}: expected a tuple of some of "
                f"{', '.join(KINDS)}; change them."
            )

    @property
    def steps(self) -> int:
        """Of both stages."""
        return self.vision_steps + self.joint_steps

    def learning_rate(self, step: int) -> float:
        """At a step: a short warm-up in each stage, and a line down to 0 at the end."""
        joint = step >= self.vision_steps
        since = step - self.vision_steps if joint else step
        rate = self.joint_rate if joint else self.vision_rate
        left = (self.steps - step) / max(self.decay_steps, 1)
        return rate * min(1.0, (since + 1) / 200, left)


def draw_batch(
    plan: Plan,
    step: int,
    masks: dict[str, list[Image.Image]],
    tokenizer: Tokenizer,
    config: VisionConfig,
    with_text: bool = True,
    pens: dict[str, list[Image.Image]] | None = None,
) -> SceneBatch:
    """The batch of a step: a function of the plan's seed and the step alone.

    Args:
        plan: Plan.
        step: number of the step.
        masks: from `load_masks("train")`.
        tokenizer: Tokenizer.
        config: VisionConfig.
        with_text: whether questions are wanted.
        pens: from `pen_masks`; needed where the plan has a share of drawings.

    Returns:
        SceneBatch.

    Raises:
        InputError: the plan has a share of drawings, and there are no pens.
    """
    if plan.drawn and not pens:
        raise InputError(
            f"The plan has drawn {plan.drawn}, and there are no pens: expected drawings "
            "of every kind; give those of pen_masks()."
        )
    rng = np.random.default_rng([plan.seed, step])
    options = canvases(config.max_num_tiles)
    num_tiles = math.prod(options[rng.integers(len(options))])
    options = [canvas for canvas in options if math.prod(canvas) == num_tiles]
    # Things are distorted more and more while the first stage lasts.
    share = min(1.0, step / max(plan.vision_steps, 1))
    strength = 1 + (plan.strength - 1) * share
    scenes = []
    for _ in range(plan.images):
        canvas = options[rng.integers(len(options))]
        # Without questions, the more things the more there is to learn from.
        crowd = (
            plan.num_things if with_text else int(rng.integers(1, 3 * num_tiles + 1))
        )
        how = (crowd, strength, plan.kinds, canvas)
        if not (pens and plan.drawn and rng.random() < plan.drawn):
            scenes.append(draw_scene(rng, masks, *how))
        elif plan.rows and 1 in canvas and rng.random() < plan.rows:
            scenes.append(draw_row(rng, pens, *how))
        else:
            scenes.append(draw_scene(rng, pens, *how))
    tiles = [image_to_tiles(s.image, config.image_size) for s in scenes]
    rows = []
    if with_text:
        given = plan.weights if step < plan.later_step else plan.later_weights
        weights = np.array(given) / sum(given)
        turns = 2 if rng.random() < 0.12 else 1
        for scene in scenes:
            asked = draw_questions(rng, scene, plan.questions * turns, weights)
            for i in range(0, len(asked), turns):
                image = rng.random() > 0.02
                rows.append(encode_turns(tokenizer, asked[i : i + turns], image))
    length = max((len(tokens) for tokens, _ in rows), default=1)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    labels = torch.full((len(rows), length), -100)
    for i, (row, targets) in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
        labels[i, : len(row)] = torch.tensor(targets)
    sees = (tokens == tokenizer.image_id).cumsum(dim=1) > 0
    return SceneBatch(
        torch.stack([tile.pixel_values for tile in tiles]),
        torch.tensor([tile.aspect_ratio_id for tile in tiles]),
        num_tiles,
        torch.stack([patch_targets(scene, config) for scene in scenes]),
        tokens,
        labels,
        sees[:, :, None],
    )


def draw_questions(
    rng: np.random.Generator, scene: Scene, count: int, weights: np.ndarray
) -> list[Question]:
    """So many questions about a scene, no text twice while there are others."""
    kinds, asked, texts = list(WORDINGS), [], set()
    for attempt in range(20 * count):
        question = ask(rng, scene, kinds[rng.choice(len(kinds), p=weights)])
        if question and (question.text not in texts or attempt > 10 * count):
            asked.append(question)
            texts.add(question.text)
        if len(asked) == count:
            break
    return asked


def project(model: Mllama, batch: SceneBatch) -> torch.Tensor:
    """Projected vision tokens of a batch's valid tiles: [N, num_tiles, P, D]."""
    features = model.vision_model.encode(
        batch.pixel_values, batch.aspect_ratio_ids, batch.num_tiles
    )
    return model.multi_modal_projector(features[:, : batch.num_tiles])


def answer_loss(model: Mllama, batch: SceneBatch, vision: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the tokens of the answers, and of nothing else.

    Args:
        model: Mllama.
        batch: SceneBatch.
        vision: from `project`.

    Returns:
        fp32 scalar.
    """
    seen, times = vision.flatten(1, 2), len(batch.tokens) // len(vision)  # [N, V, D]
    keys, values = {}, {}
    for layer in model.cross_attention_layers:
        key, value = layer.keys_and_values(seen)
        keys[layer.layer] = key.repeat_interleave(times, dim=0)  # [N·Q, G, V, E]
        values[layer.layer] = value.repeat_interleave(times, dim=0)
    context = VisionContext(keys, values, None, batch.sees)
    hidden = model.language_model.model(batch.tokens, vision=context)  # [N·Q, T, D]
    wanted = batch.labels >= 0
    logits = model.language_model.lm_head(hidden[wanted])  # [answers, W]
    return F.cross_entropy(logits.float(), batch.labels[wanted])


class Pretrainer(Resumable):
    """A model in training, with everything that a later run needs to go on from here.

    Args:
        plan: Plan.
        model: Mllama, initialised.
        ranks: of its tokenizer, see `make_ranks`.
        masks: from `load_masks("train")`.
        start: says which weights `model` has, if it was trained before.

    Attributes:
        tokenizer: Tokenizer.
        head: PatchHead.
    """

    def __init__(
        self,
        plan: Plan,
        model: Mllama,
        ranks: dict[bytes, int],
        masks: dict[str, list[Image.Image]],
        start: str = "",
    ) -> None:
        self.plan, self.model, self.ranks, self.masks = plan, model, ranks, masks
        self.pens = pen_masks() if plan.drawn else None
        self.tokenizer = Tokenizer(ranks)
        share_places(model.vision_model)
        torch.manual_seed(plan.seed)
        self.head = PatchHead(model.config.text.hidden_size).to(model.device)
        parameters = [*model.named_parameters(), *self.head.named_parameters()]
        optimiser = torch.optim.AdamW(
            decayed(dict(parameters)), betas=(0.9, 0.98), weight_decay=0.05, fused=True
        )
        super().__init__(
            as_stored(plan) | {"start": start},
            plan.steps,
            {"model": model, "head": self.head},
            optimiser,
            2 + len(PATCH_TARGETS),
        )

    def train_step(self, batch: SceneBatch) -> torch.Tensor:
        """One step: draw, look, answer, learn. Returns the loss, fp32 scalar."""
        plan, joint = self.plan, self.step >= self.plan.vision_steps
        batch = batch.to(self.model.device)
        with quick_arithmetic(self.model.device):
            vision = project(self.model, batch)  # [N, K, P, D]
            patches = self.head.loss(vision, batch.patches)
            told = patches.new_zeros(())
            if joint:
                told = answer_loss(self.model, batch, vision)
            weighted = (patches * patches.new_tensor(PATCH_WEIGHTS)).mean()
            loss = told + weighted * (plan.patch_weight if joint else 1.0)
        self.learn(loss, plan.learning_rate(self.step))
        self._record(told.detach(), patches.detach())
        return loss.detach()

    def _record(self, answers: torch.Tensor, patches: torch.Tensor) -> None:
        self.sums += torch.cat([answers.new_ones(1), answers[None], patches])
        if self.step % NOTE_EVERY == 0:
            count, told, *found = self.sums.tolist()
            gates = {
                name: parameter.item()
                for name, parameter in self.model.named_parameters()
                if parameter.numel() == 1
            }
            self.history.append(
                {
                    "step": self.step,
                    "answers": told / count,
                    "patches": dict(zip(PATCH_TARGETS, (p / count for p in found))),
                    "gates": gates,
                }
            )
            self.sums.zero_()

    def validate(self, items: Sequence[Item]) -> None:
        """Note in the history how many of some questions are answered right.

        Args:
            items: list of Item.
        """
        counts = exact_match(
            items, answers(VLM(self.model.eval(), self.tokenizer), items)
        )
        self.model.train()
        shares = {row: right / total for row, (right, total) in counts.items()}
        self.history[-1]["validation"] = shares

    def batches(self, until: int, workers: int = 1) -> torch.utils.data.DataLoader:
        """The batches of the steps still to do, drawn ahead by another process."""
        steps = _Steps(self)
        return torch.utils.data.DataLoader(
            steps,
            batch_size=None,
            sampler=range(self.step, until),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )


class _Steps(torch.utils.data.Dataset):
    """Batches by the number of their step."""

    def __init__(self, trainer: Pretrainer) -> None:
        self.plan, self.masks, self.pens = trainer.plan, trainer.masks, trainer.pens
        self.tokenizer = trainer.tokenizer
        config = trainer.model.config.vision
        assert config is not None
        self.config = config

    def __len__(self) -> int:
        return self.plan.steps

    def __getitem__(self, step: int) -> SceneBatch:
        with_text = step >= self.plan.vision_steps
        return draw_batch(
            self.plan,
            step,
            self.masks,
            self.tokenizer,
            self.config,
            with_text,
            self.pens,
        )


SAVE_EVERY = 500  # steps
VALIDATE_EVERY = 1000  # steps of the second stage


# On from the model that 12,000 steps of Plan() make: half of the scenes are drawn with a
# pen, as on the live page's paper.
DRAWINGS = Plan(
    seed=1,
    vision_steps=0,
    joint_steps=6000,
    decay_steps=4000,
    joint_rate=1e-3,
    later_step=0,
    drawn=0.5,
)
# And on from there: digits close beside each other, which a scene seldom has.
DRAWN_ROWS = replace(DRAWINGS, seed=2, joint_steps=3000, decay_steps=2000, rows=0.7)
# And on: more of them, and more questions that have them read.
DRAWN_NUMBERS = replace(
    DRAWN_ROWS,
    seed=3,
    joint_steps=2400,
    joint_rate=7e-4,
    later_weights=(0.7, 2.0, 0.6, 0.5, 6.0, 1.5, 2.2, 1.0, 2.0),
    drawn=0.6,
    rows=0.9,
)


def new_trainer(
    plan: Plan,
    device: str | torch.device = "cpu",
    start: str | Path | None = None,
) -> Pretrainer:
    """A Pretrainer at its first step.

    Args:
        plan: Plan.
        device: torch device or its name.
        start: folder of a small model to go on from; None makes first values from the
            plan's seed. The patch head is new in either case.

    Raises:
        InputError: the folder holds no model of these sizes and this vocabulary.
    """
    ranks = make_ranks()
    config = small_config(len(ranks) + NUM_SPECIAL_TOKENS)
    weights = ""
    if start is None:
        model = Mllama(config)
        initialise(model, plan.seed)
    else:
        model = load(start, dtype="float32", device="cpu").model
        if model.config != config:
            raise InputError(
                f"{start} holds another model: expected one of the small model's sizes, "
                "as `mllama-lite train` writes it; name its folder."
            )
        model.train().requires_grad_(True)
        weights = checksum(dict(model.state_dict()))
    return Pretrainer(plan, model.to(device), ranks, load_masks("train"), weights)


def train(
    folder: str | PathLike,
    plan: Plan = Plan(),
    progress: Callable[[Pretrainer], object] | None = None,
    workers: int = 1,
    device: str | torch.device = "cpu",
    start: str | Path | None = None,
) -> VLM:
    """Train a small model, or go on where an earlier call was stopped.

    Every 500 steps the state is written to `training.pt` in the folder, and every 1,000
    steps of the second stage 440 questions of the validation split are asked. The same
    plan gives the same model on the same processor with as many threads, however often
    it was stopped.

    Args:
        folder: path; made if it is not there. At the end it holds the model, as the
            hub lays it out, with what transformers' processor needs, and
            `history.json`.
        plan: Plan.
        progress: called with the Pretrainer after every step, or None.
        workers: processes that draw batches; 0 to draw them in this one.
        device: torch device or its name.
        start: folder of a small model to go on from, as `DRAWINGS` does; None for
            first values.

    Returns:
        VLM, parameters in bf16 as they are stored.

    Raises:
        InputError: see `check_out` and `only_training` for the folder; it holds a
            training with another plan or another start, or a damaged one; see
            `new_trainer` for the start; the disk is full; scikit-learn is not
            installed.
    """
    if not isinstance(plan, Plan):
        raise InputError(
            f"The plan is {shown(plan)}: expected a Plan; make one, as Plan(seed=1)."
        )
    folder = check_out(folder)
    with only_training(folder):
        state, trainer = folder / STATE, new_trainer(plan, find_device(device), start)
        if state.is_file():
            trainer.load(state)
        else:
            trainer.save(state)  # from now on the folder is this training's
        items: list[Item] = []
        for batch in trainer.batches(plan.steps, workers):
            trainer.train_step(batch)
            if trainer.step % VALIDATE_EVERY == 0 and trainer.step > plan.vision_steps:
                items = items or held_out("validation", 40, seed=1)
                trainer.validate(items)
            if trainer.step % SAVE_EVERY == 0 or trainer.step == plan.steps:
                trainer.save(state)
            if progress:
                progress(trainer)
        model = trainer.model.to(torch.bfloat16).eval()
        with system_errors(folder, "written"):
            save_model(model, folder)
            write_processor_files(folder, trainer.ranks, model.config)
        with written_aside(folder / "history.json") as part:
            history = json.dumps(trainer.history) + "\n"
            part.write_text(history, encoding="utf-8")
    return VLM(model, trainer.tokenizer)
