# Generated from notebooks/18_hearing.ipynb: edit there, or here and run `make update`.
"""Training a language model to hear, from nothing, over a frozen encoder.

Built in chapter 18, notebooks/18_hearing.ipynb. That it can stop anywhere is chapter 11's
`Resumable`.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
import torch.nn.functional as F

from mllama_lite.adapters.data import indices_of_step
from mllama_lite.decoder import TextConfig
from mllama_lite.devices import find_device
from mllama_lite.errors import InputError, shown
from mllama_lite.files import written_aside
from mllama_lite.hearing.asking import QUESTIONS, prompt, save_hearing
from mllama_lite.hearing.clips import NOTHING, Clip, Clips
from mllama_lite.hearing.model import HearingConfig, HearingModel
from mllama_lite.hearing.whisper_encoder import WhisperConfig
from mllama_lite.resumable import NOTE_EVERY, Resumable, decayed, quick_arithmetic
from mllama_lite.tokenizer import Tokenizer
from mllama_lite.training_folder import STATE, as_stored, check_out, only_training


SAVE_EVERY = 100  # steps
WAYS = {"tokens": (), "keys": (1, 3)}  # the cross-attention layers of each


@dataclass(frozen=True)
class HearingPlan:
    """What decides how a training goes; whoever changes it begins anew.

    Attributes:
        seed: of first values, order and questions.
        steps: of the optimiser.
        batch: questions in a step.
        rate: the highest learning rate: reached after `warmup` steps, held until `decay`
            of the steps are left, then down in a line.
        warmup, decay: in steps, and as a share of the steps.
        deaf: share of the questions that come without a sound, where the answer is
            NOTHING.
        kind: share of the questions that ask for the kind of what is said.
    """

    seed: int = 0
    steps: int = 4000
    batch: int = 32
    rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.4
    deaf: float = 0.06
    kind: float = 0.15

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("steps", 1), ("batch", 1), ("warmup", 0)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 2**31:
                raise InputError(
                    f"{name} is {shown(value)}: expected a whole number, {least} or "
                    "more; change it."
                )
        for name in ("rate", "decay", "deaf", "kind"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= 1:
                raise InputError(
                    f"{name} is {shown(value)}: expected a number from 0 to 1; change it."
                )

    def learning_rate(self, step: int) -> float:
        """At one of the steps: up, level, and down to a fiftieth."""
        left = (1 - step / self.steps) / self.decay if self.decay else 1.0
        up = (step + 1) / self.warmup if self.warmup else 1.0
        return self.rate * min(1.0, up, max(0.02, left))


def small_hearing_config(
    vocab_size: int, way: str, encoder: WhisperConfig | None = None
) -> HearingConfig:
    """Sizes of 1.2 million parameters, with as many layers in both ways.

    Args:
        vocab_size: W.
        way: "tokens", or "keys": two of the five layers look at sound.
        encoder: WhisperConfig; None for that of tiny.en.
    """
    if way not in WAYS:
        raise InputError(
            f"The way is {shown(way)}: expected {' or '.join(WAYS)}; choose one."
        )
    text = TextConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rope_theta=10000.0,
        rope_scaling=None,
        max_position_embeddings=256,
        cross_attention_layers=WAYS[way],
        num_extra_embeddings=1,
    )
    return HearingConfig(text, encoder or WhisperConfig())


@torch.no_grad()
def first_values(model: HearingModel, seed: int, gate: float = 0.3) -> None:
    """Random first values; gates begin open, for there is nothing to protect."""
    generator = torch.Generator().manual_seed(seed)
    deep = (2 * model.config.text.num_hidden_layers) ** -0.5
    for name, weight in model.named_parameters():
        if "gate" in name and weight.numel() == 1:
            weight.fill_(gate)
        elif weight.ndim < 2:
            weight.fill_(float("norm" in name and name.endswith("weight")))
        else:
            std = 0.02 if "embed" in name else weight.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std *= deep
            weight.copy_(torch.randn(weight.shape, generator=generator) * std)


def answer(clip: Clip, question: str) -> str:
    """What is right to answer to one of the QUESTIONS about a clip."""
    if question == QUESTIONS["words"] or clip.kind == "noise":
        return clip.text
    kinds = {"digit": "a number", "number": "a number", "letter": "a letter"}
    return kinds.get(clip.kind, "a word")


def sample(
    clip: Clip, tokenizer: Tokenizer, plan: HearingPlan, generator: np.random.Generator
) -> tuple[list[int], int]:
    """A question about a clip with its answer.

    Returns:
        (token ids, how many of them are the answer, its end included). Without the
        audio token the clip is not heard, and the answer is NOTHING.
    """
    hears = generator.random() >= plan.deaf
    asked = QUESTIONS["kind" if generator.random() < plan.kind else "words"]
    said = answer(clip, asked) if hears else NOTHING
    ids = [*tokenizer.encode(said), tokenizer.special["<|eot_id|>"]]
    return prompt(tokenizer, asked, hears) + ids, len(ids)


class HearingTrainer(Resumable):
    """A language model that learns to hear.

    Args:
        plan: HearingPlan.
        model: HearingModel with its first values.
        clips: Clips.
        tokenizer: Tokenizer.
    """

    def __init__(
        self, plan: HearingPlan, model: HearingModel, clips: Clips, tokenizer: Tokenizer
    ) -> None:
        self.plan, self.model, self.clips, self.tokenizer = (
            plan,
            model,
            clips,
            tokenizer,
        )
        settings = as_stored(plan) | {
            "model": as_stored(model.config),
            "clips": clips.checksum,
        }
        optimiser = torch.optim.AdamW(
            decayed(dict(model.named_parameters())),
            betas=(0.9, 0.95),
            weight_decay=0.1,
            fused=True,
        )
        super().__init__(settings, plan.steps, {"model": model}, optimiser, 3)

    def train_step(self) -> torch.Tensor:
        """Learn from the questions of one step. Returns the loss, fp32 scalar."""
        begin, plan, device = time.process_time(), self.plan, self.sums.device
        numbers = indices_of_step(self.step, plan.batch, len(self.clips), plan.seed)
        # numpy drops zeros at the end of a seed, so the last number is never 0.
        generator = np.random.default_rng([plan.seed, 3, self.step + 1])
        samples = [
            sample(self.clips.clips[i], self.tokenizer, plan, generator)
            for i in numbers
        ]
        rows, mark = [row for row, _ in samples], self.model.config.audio_token_index
        heard = [number for row, number in zip(rows, numbers) if mark in row]
        states = self.clips.take(heard).to(device) if heard else None
        with quick_arithmetic(device):
            logits = self.model(rows, states)
            loss = answer_loss(logits, samples, self.vectors(states), mark)
        self.learn(loss, plan.learning_rate(self.step))
        spent = [1.0, time.process_time() - begin]
        self.sums += torch.cat([loss.new_tensor(spent), loss.detach()[None]])
        if self.step % NOTE_EVERY == 0:
            count, seconds, total = self.sums.tolist()
            self.history.append(
                {"step": self.step, "loss": total / count, "seconds": seconds}
            )
            self.sums.zero_()
        return loss.detach()

    def vectors(self, states: torch.Tensor | None) -> int:
        """How many places a sound takes among the tokens."""
        config = self.model.config
        if config.looks or states is None:
            return 1
        return -(-states.shape[1] // config.stack)


def answer_loss(
    logits: torch.Tensor, samples: list[tuple[list[int], int]], vectors: int, mark: int
) -> torch.Tensor:
    """Mean cross-entropy of the answers' tokens, each predicted by what is before it.

    Args:
        logits: fp32 [B, T, W].
        samples: what `sample` gave.
        vectors: places that a sound takes.
        mark: the audio token, which takes them.
    """
    predicted, wanted = [], []
    for scores, (row, count) in zip(logits, samples):
        length = len(row) + (vectors - 1) * row.count(mark)
        predicted.append(scores[length - count - 1 : length - 1])
        wanted += row[-count:]
    return F.cross_entropy(
        torch.cat(predicted), torch.tensor(wanted, device=logits.device)
    )


def train_hearing(
    folder: str | PathLike,
    clips: Clips,
    tokenizer: Tokenizer,
    config: HearingConfig,
    plan: HearingPlan = HearingPlan(),
    progress: Callable[[HearingTrainer], object] | None = None,
    device: str | torch.device = "cpu",
) -> HearingModel:
    """Train a model from nothing, or go on where an earlier call was stopped.

    Every 100 steps the state is written to `training.pt` in the folder.

    Args:
        folder: path; made if it is not there. At the end it holds what `load_hearing`
            reads, but for the encoder, and `history.json`.
        clips: Clips.
        tokenizer: Tokenizer.
        config: HearingConfig.
        plan: HearingPlan.
        progress: called with the HearingTrainer after every step, or None.
        device: torch device or its name.

    Returns:
        HearingModel, parameters in fp32.

    Raises:
        InputError: see `check_out` and `only_training` for the folder; it holds another
            training, or a damaged one; the clips are of another encoder.
    """
    folder = check_out(folder)
    if clips.states.shape[2] != config.encoder.d_model:
        raise InputError(
            f"The clips have states of {clips.states.shape[2]} numbers: expected the "
            f"{config.encoder.d_model} of the encoder; encode them with it."
        )
    with only_training(folder):
        model = HearingModel(config)
        first_values(model, plan.seed)
        trainer = HearingTrainer(plan, model.to(find_device(device)), clips, tokenizer)
        state = folder / STATE
        if state.is_file():
            trainer.load(state)
        else:
            trainer.save(state)  # from now on the folder is this training's
        while trainer.step < plan.steps:
            trainer.train_step()
            if trainer.step % SAVE_EVERY == 0 or trainer.step == plan.steps:
                trainer.save(state)
            if progress:
                progress(trainer)
        save_hearing(model, tokenizer, folder)
        with written_aside(folder / "history.json") as part:
            part.write_text(json.dumps(trainer.history) + "\n", encoding="utf-8")
    return model.eval()
