# Generated from notebooks/13_finetuning.ipynb: edit there, or here and run `make update`.
"""What decides how a fine-tuning goes, and settings chosen for the model at hand.

Built in chapter 13, notebooks/13_finetuning.ipynb.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from mllama_lite.adapters.data import Sample, answer_logits, make_batch
from mllama_lite.errors import InputError, shown
from mllama_lite.model import Mllama, MllamaConfig
from mllama_lite.tokenizer import Tokenizer


ALPHA = 2  # times the rank
RATE = 2e-4 * 4096  # times 1 / width: what the 11B, 4096 wide, is fine-tuned with
UNWRITTEN = 1e-3  # times less likely than by chance
LOOKED_AT = 64  # samples


@dataclass(frozen=True)
class Recipe:
    """What decides how a fine-tuning goes; whoever changes it begins anew.

    Attributes:
        targets: see `add_adapter`; None to choose, see `chosen`.
        rank, dropout: of the adapter, see `add_adapter`.
        alpha: the adapter is multiplied by alpha / rank; None for twice the rank.
        epochs: how often every sample is seen.
        steps: steps of the optimiser instead of epochs, or None.
        lr: the highest learning rate; None to choose by the model's width.
        warmup: share of the steps in which the learning rate rises to it.
        batch: samples at once, which memory limits; at most all there are.
        accumulate: how many such batches make a step.
        clip: longest gradient; longer ones are shortened.
        held_out: share of the samples that are measured, not learned, where the data
            has no `validation` folder.
        max_length: tokens that a sample may have; None for the model's context.
        seed: of first values, order, dropout and what is held out.

    Raises:
        InputError: a setting is out of its range.
    """

    targets: tuple[str, ...] | None = None
    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    epochs: int = 3
    steps: int | None = None
    lr: float | None = None
    warmup: float = 0.05
    batch: int = 4
    accumulate: int = 1
    clip: float = 1.0
    held_out: float = 0.1
    max_length: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        targets = self.targets
        if isinstance(targets, str):
            targets = (targets,)
        if targets is not None:
            if not isinstance(targets, (tuple, list)) or not all(
                isinstance(target, str) for target in targets
            ):
                raise InputError(
                    f"targets are {shown(targets)}: expected names such as self, mlp "
                    "and head; change them."
                )
            object.__setattr__(self, "targets", tuple(targets))
        for name in ("rank", "epochs", "steps", "batch", "accumulate", "max_length"):
            value = getattr(self, name)
            if value is None and name in ("steps", "max_length"):
                continue
            if type(value) is not int or value < 1:
                raise InputError(
                    f"{name} is {shown(value)}: expected a whole number, 1 or more; "
                    "change it."
                )
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise InputError(
                f"seed is {shown(self.seed)}: expected a whole number from 0 to "
                "2^63 - 1; change it."
            )
        for name, fits, expected in (
            ("alpha", lambda x: 0 < x < 1e9, "a number above 0 and below 10^9"),
            ("dropout", lambda x: 0 <= x < 1, "a number from 0 up to 1"),
            ("lr", lambda x: 0 < x <= 10, "a number above 0, at most 10"),
            ("clip", lambda x: x > 0, "a number above 0"),
            ("warmup", lambda x: 0 <= x <= 1, "a number from 0 to 1"),
            ("held_out", lambda x: 0 <= x < 1, "a number from 0 up to 1"),
        ):
            value = getattr(self, name)
            if value is None and name in ("alpha", "lr"):
                continue
            if type(value) not in (int, float) or not fits(value):
                raise InputError(
                    f"{name} is {shown(value)}: expected {expected}; change it."
                )


def learning_rate(recipe: Recipe, step: int, steps: int) -> float:
    """At one of the steps: up in a line, then down to almost 0 along half a cosine."""
    assert recipe.lr is not None  # see `chosen`
    rising = round(recipe.warmup * steps)
    if step < rising:
        return recipe.lr * (step + 1) / rising
    done = (step - rising) / (steps - rising)
    return recipe.lr * (1 + math.cos(math.pi * done)) / 2


def chosen(recipe: Recipe, config: MllamaConfig, new_words: bool = False) -> Recipe:
    """The same recipe, with what it leaves open chosen for a model.

    A step of AdamW moves every number of a matrix by about the learning rate, whatever
    the gradient's size; what that does to an output grows with the number of inputs it
    is summed over. So the rate is inverse to the model's width.

    Args:
        recipe: Recipe.
        config: MllamaConfig.
        new_words: whether the answers hold words that the model never writes, see
            `unwritten`: then the head is adapted too.

    Returns:
        Recipe without None in `targets`, `alpha` and `lr`.
    """
    layers = ["self", "mlp", *["cross"] * bool(config.text.cross_attention_layers)]
    found: dict[str, Any] = {
        "targets": (*layers, *["head"] * new_words),
        "alpha": ALPHA * recipe.rank,
        "lr": min(RATE / config.text.hidden_size, 1.0),
    }
    missing = {name: v for name, v in found.items() if getattr(recipe, name) is None}
    return replace(recipe, **missing)


@torch.no_grad()
def unwritten(
    model: Mllama, tokenizer: Tokenizer, samples: list[Sample], batch: int = 4
) -> float:
    """How much of the answers are tokens that a model never writes.

    Such a token is, also where it is likeliest in these answers, a thousand times less
    likely than one drawn blindly: the head has learned to keep it down.

    Args:
        model: Mllama without an adapter that is active.
        tokenizer: Tokenizer.
        samples: list of Sample; of many, 64 are looked at.
        batch: samples at once.

    Returns:
        Their share of the answers' tokens, 0 to 1.
    """
    every = -(-len(samples) // LOOKED_AT)
    looked_at = samples[::every]
    best: dict[int, float] = {}
    count: dict[int, int] = {}
    for first in range(0, len(looked_at), batch):
        rows = make_batch(looked_at[first : first + batch], tokenizer, model.config)
        logits, labels = answer_logits(model, rows)
        told = logits.log_softmax(dim=-1).gather(1, labels[:, None])[:, 0]
        for token, value in zip(labels.tolist(), told.tolist()):
            best[token] = max(value, best.get(token, -math.inf))
            count[token] = count.get(token, 0) + 1
    least = math.log(UNWRITTEN / model.config.text.vocab_size)
    never = [token for token in best if best[token] < least]
    return sum(count[token] for token in never) / max(sum(count.values()), 1)
