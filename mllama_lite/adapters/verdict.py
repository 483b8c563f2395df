# Generated from notebooks/13_finetuning.ipynb: edit there, or here and run `make update`.
"""What a fine-tuning has changed, in words: answers before and after, and a verdict.

Built in chapter 13, notebooks/13_finetuning.ipynb.
"""

from typing import TYPE_CHECKING

import torch

from mllama_lite.adapters.data import Sample
from mllama_lite.tiles import open_image
from mllama_lite.tokenizer import Tokenizer
from mllama_lite.vlm import VLM


if TYPE_CHECKING:  # which imports this module
    from mllama_lite.adapters.training import Trainer


SHOWN, LONGEST = 3, 64  # samples, and tokens of an answer


def some_of(samples: list[Sample]) -> list[Sample]:
    """The first few that ask different things."""
    different: dict[tuple, Sample] = {}
    for sample in samples:
        different.setdefault((sample.images, *sample.tokens), sample)
    return list(different.values())[:SHOWN]


def last_turn(sample: Sample, tokenizer: Tokenizer) -> tuple[list[int], str, str]:
    """Of a sample's last answer: the tokens before it, the question and the answer."""
    first = len(sample.labels) - 1
    while sample.labels[first] < 0:
        first -= 1
    answer: list[int] = []
    while sample.labels[first] >= 0:
        answer.insert(0, sample.labels[first])
        first -= 1
    prompt = sample.tokens[: first + 2]
    head = tokenizer.encode_header("user")
    begin = next(
        i for i in reversed(range(len(prompt))) if prompt[i:][: len(head)] == head
    )
    asked = prompt[begin + len(head) : -len(tokenizer.encode_header("assistant"))]
    words = [tokenizer.decode(ids, skip_special=True) for ids in (asked, answer)]
    return prompt, words[0], words[1]


@torch.no_grad()
def told(vlm: VLM, samples: list[Sample]) -> list[str]:
    """What a model answers to the last question of each sample."""
    tokenizer = vlm.tokenizer
    assert tokenizer is not None
    texts, stops = [], tokenizer.stop_ids
    for sample in samples:
        prompt, _, answer = last_turn(sample, tokenizer)
        images = [open_image(path) for path in sample.images]
        room = vlm.config.text.max_position_embeddings - len(prompt)
        most = min(LONGEST, 2 * len(tokenizer.encode(answer)) + 8, room)
        ids = vlm.generate(prompt, images, most, stops)
        texts.append(tokenizer.decode(ids, skip_special=True))
    return texts


def verdict(
    trainer: "Trainer", samples: list[Sample], before: list[str], after: list[str]
) -> str:
    """A text that says what a training has changed, and if nothing, what to try.

    Args:
        trainer: Trainer at its end.
        samples: from `some_of`.
        before, after: from `told`, without the adapter and with it.
    """
    lines, tokenizer = [], trainer.vlm.tokenizer
    assert tokenizer is not None
    wanted = [last_turn(sample, tokenizer)[2] for sample in samples]
    lines.append("held out:" if trainer.held_out else "of the samples learned:")
    for sample, old, new, answer in zip(samples, before, after, wanted):
        question = last_turn(sample, tokenizer)[1]
        lines.append(f"  {question!r}, expected {answer!r}")
        lines.append(f"    before {old!r}, after {new!r}")
    first, last = losses(trainer)
    lines.append(f"loss {first:.4g} before, {last:.4g} after")
    rows = [row for row in trainer.history if row["held_out_loss"] is not None]
    right = [row["held_out_right"] for row in rows] or [0.0]
    if trainer.best:
        step, count = trainer.best["step"], len(trainer.held_out)
        (after_best,) = [r["held_out_right"] for r in rows if r["step"] == step]
        right = [right[0], after_best]
        lines[-1] += (
            f", measured on {count} held out, of whose answers {right[0]:.0%} were "
            f"right to the letter before and {right[1]:.0%} after; saved is the best "
            f"adapter, that of step {step} of {trainer.steps}"
        )
    known = any(a == w for a, w in zip(after, wanted)) or right[-1] > right[0]
    if not last < 0.98 * first:
        lines.append("Nothing was learned: the loss has not fallen.")
    elif before == after and not known:
        lines.append(
            "Nothing was learned that shows: these answers are what they were."
        )
    else:
        return "\n".join(lines)
    # A loss that has grown says that the steps were too long.
    lines.append(advice(trainer, 1 / 3 if last > 1.02 * first else 3))
    return "\n".join(lines)


def losses(trainer: "Trainer") -> tuple[float, float]:
    """Before and after: of what is held out, else of the first and the last steps."""
    rows = trainer.history
    if trainer.best and rows[0]["held_out_loss"] is not None:
        return rows[0]["held_out_loss"], trainer.best["loss"]
    learned = [row["loss"] for row in rows if row["loss"] is not None]
    return learned[0], sum(learned[-5:]) / len(learned[-5:])


def advice(trainer: "Trainer", factor: float) -> str:
    """What to try, as options of the command line, with a rate so many times as high."""
    recipe = trainer.recipe
    assert recipe.lr is not None and recipe.targets is not None  # see `chosen`
    kind = "higher" if factor > 1 else "lower"
    ways = [f"a {kind} learning rate (--lr {recipe.lr * factor:.2g})"]
    ways.append(f"more steps (--steps {max(3 * trainer.steps, 100)})")
    if "head" not in recipe.targets:
        ways.append(f"the head too (--targets {','.join(recipe.targets)},head)")
    return f"Try {', '.join(ways[:-1])} or {ways[-1]}, in another folder."
