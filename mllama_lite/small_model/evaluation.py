# Generated from notebooks/11_training.ipynb: edit there, or here and run `make update`.
"""How often a model answers right, on pictures that it has never seen.

Built in chapter 11, notebooks/11_training.ipynb.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mllama_lite.errors import InputError
from mllama_lite.small_model.questions import Question, ask
from mllama_lite.small_model.scenes import DIGITS, KINDS, SPLITS, draw_scene, load_masks
from mllama_lite.tokenizer import ImagePart
from mllama_lite.vlm import VLM


# What is counted apart: kinds of questions, and the numbers of things they are asked of
# (None: any).
ROWS = {
    "which digit": ("digit", None),
    "colour": ("colour", None),
    "count": ("count", None),
    "one digit": ("one", (1,)),
    "read two digits": ("read", (2, 3)),
    "read three digits": ("read", (3, 4)),
    "where": ("where", None),
    "left or right of": ("beside", (2, 3, 4)),
    "above or below": ("beside", (2, 3, 4)),
    "describe": ("describe", None),
    "is there": ("exists", None),
}


@dataclass(frozen=True)
class Item:
    """A question with its picture and the row it is counted in."""

    row: str
    question: Question
    image: Image.Image = field(repr=False)


def row_of(question: Question) -> str | None:
    """Under which of ROWS a question is counted; None for four digits in order."""
    if question.kind == "read":
        length = len(question.answer.split())
        return {2: "read two digits", 3: "read three digits"}.get(length)
    if question.kind == "beside":
        upright = any(word in question.text.lower() for word in ("above", "below"))
        return "above or below" if upright else "left or right of"
    return next(row for row, (kind, _) in ROWS.items() if kind == question.kind)


def held_out(
    split: str,
    count: int,
    seed: int = 0,
    unseen_wording: bool = False,
    kinds: Sequence[str] = KINDS,
) -> list[Item]:
    """Questions for measuring, each about a picture of its own.

    Args:
        split: "validation" while choosing; "test" once, at the end.
        count: of questions in each of ROWS.
        seed: of the random numbers.
        unseen_wording: use only wordings that training never uses.
        kinds: of things on the pictures.

    Returns:
        list of Item, row by row; without digits, the rows about digits are left out.

    Raises:
        InputError: see `load_masks`; a count below 1.
    """
    if count < 1:
        raise InputError(
            f"The number of questions in a row is {count}: expected 1 or more; change it."
        )
    masks, items = load_masks(split), []
    for number, (row, (kind, sizes)) in enumerate(ROWS.items()):
        if kind in ("digit", "one", "read") and not set(kinds) & set(DIGITS):
            continue
        # numpy drops zeros at the end of a seed, so the last number is never 0.
        parts = [seed, list(SPLITS).index(split), number, 1 + unseen_wording]
        rng, found = np.random.default_rng(parts), 0
        while found < count:
            size = sizes and sizes[int(rng.integers(len(sizes)))]
            scene = draw_scene(rng, masks, size, kinds=kinds)
            question = ask(rng, scene, kind, unseen_wording)
            if question and row_of(question) == row:
                items.append(Item(row, question, scene.image))
                found += 1
    return items


def answers(
    vlm: VLM, items: Sequence[Item], images: str = "own", batch: int = 64
) -> list[str]:
    """What a model answers to questions, greedily.

    Args:
        vlm: VLM.
        items: list of Item.
        images: "own"; "wrong", each question with the picture of another; "blank",
            white paper of the same size; "none".
        batch: rows that are written at once.

    Returns:
        list of str.

    Raises:
        InputError: another word for `images`.
    """
    if images not in ("own", "wrong", "blank", "none"):
        raise InputError(
            f"The images are {images!r}: expected own, wrong, blank or none; choose one."
        )
    if vlm.tokenizer is None:
        raise InputError(
            "The model has no tokenizer: expected one, for asking in words; add "
            "tokenizer.model to its folder."
        )
    another = (len(items) // 2 + 7) % max(len(items), 1) or 1
    # Rows of like length and equally many tiles waste nothing in a batch.
    order = sorted(
        range(len(items)), key=lambda i: (items[i].question.kind, items[i].image.size)
    )
    results = [""] * len(items)
    for first in range(0, len(items), batch):
        chosen, rows, pictures = order[first : first + batch], [], []
        for i in chosen:
            picture = items[i].image
            if images == "wrong":
                picture = items[(i + another) % len(items)].image
            elif images == "blank":
                picture = Image.new("RGB", picture.size, "white")
            shown = [] if images == "none" else [picture]
            content = [*map(ImagePart, shown), items[i].question.text]
            message = {"role": "user", "content": content}
            rows.append(vlm.tokenizer.encode_chat([message])[0])
            pictures.append(shown)
        for i, ids in zip(chosen, vlm.generate_batch(rows, pictures, 32)):
            results[i] = vlm.tokenizer.decode(ids, skip_special=True)
    return results


def best_guesses(
    items: Sequence[Item], sample: Sequence[Item], enough: int = 20
) -> list[str]:
    """The best answers to questions for someone who does not see the pictures.

    Args:
        items: list of Item to be answered.
        sample: list of other Items, from which to learn what is usually right.
        enough: a question that occurs so often in a row of the sample is guessed by its
            words, a rarer one by its row alone.

    Returns:
        list of str.
    """
    by_text: dict[tuple[str, str], Counter[str]] = {}
    by_row: dict[str, Counter[str]] = {}
    for item in sample:
        answer = item.question.answer
        by_text.setdefault((item.row, item.question.text), Counter())[answer] += 1
        by_row.setdefault(item.row, Counter())[answer] += 1
    guesses = []
    for item in items:
        counts = by_text.get((item.row, item.question.text), Counter())
        if counts.total() < enough:
            counts = by_row[item.row]
        guesses.append(counts.most_common(1)[0][0])
    return guesses


def exact_match(
    items: Sequence[Item], given: Sequence[str]
) -> dict[str, tuple[int, int]]:
    """How many answers are right to the letter.

    Args:
        items: list of Item.
        given: list of str, as many.

    Returns:
        dict from row, and "all", to (right, total).
    """
    counts: dict[str, tuple[int, int]] = {}
    for item, answer in zip(items, given, strict=True):
        for row in (item.row, "all"):
            right, total = counts.get(row, (0, 0))
            counts[row] = right + (answer == item.question.answer), total + 1
    return counts | {"all": counts.pop("all")}  # last


def interval(right: float, total: float) -> tuple[float, float]:
    """Where the true share lies, with 95% confidence, after `right` of `total`.

    Returns:
        (low, high), each 0 to 1.

    Source: Wilson 1927.
    """
    z, share = 1.96, right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = math.sqrt(share * (1 - share) / total + (z / (2 * total)) ** 2)
    half = z * spread / (1 + z * z / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def table(columns: dict[str, dict[str, tuple[int, int]]]) -> str:
    """Shares of right answers as text, rows below each other.

    Args:
        columns: dict from a heading to what `exact_match` returned.

    Returns:
        str; the first column comes with its interval.
    """
    headings = list(columns)
    lines = [
        f"{'':18} {headings[0]:>6}  95% interval"
        + "".join(f"{h:>9}" for h in headings[1:])
    ]
    for row, counts in columns[headings[0]].items():
        low, high = interval(*counts)
        line = f"{row:18} {counts[0] / counts[1]:6.3f}  {low:.3f}-{high:.3f} "
        for heading in headings[1:]:
            right, total = columns[heading][row]
            line += f"{right / total:9.3f}"
        lines.append(line)
    return "\n".join(lines)
