# Generated from notebooks/11_training.ipynb: edit there, or here and run `make update`.
"""Questions about scenes, in many wordings, with their answers.

Built in chapter 11, notebooks/11_training.ipynb.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mllama_lite.small_model.scenes import COLOURS, KINDS, Scene, Thing


UNKNOWN = "I don't know"


@dataclass(frozen=True)
class Question:
    """A question about a scene and its one right answer."""

    kind: str
    text: str
    answer: str


# For each kind of question: wordings that are trained, and wordings that never are.
WORDINGS = {
    "digit": (
        (
            "Which digit is {colour}?",
            "What is the {colour} digit?",
            "Which number is {colour}?",
            "Name the {colour} digit.",
            "Which digit is written in {colour}?",
            "What is the {colour} number?",
        ),
        ("What number do you see in {colour}?", "Read the {colour} digit to me."),
    ),
    "colour": (
        (
            "What colour is the {thing}?",
            "Which colour is the {thing}?",
            "What is the colour of the {thing}?",
            "Name the colour of the {thing}.",
            "In which colour is the {thing} written?",
            "What colour does the {thing} have?",
        ),
        ("The {thing} has what colour?", "Tell me the colour of the {thing}."),
    ),
    "count": (
        (
            "How many {things} are there?",
            "How many {things} are in the picture?",
            "How many {things} do you see?",
            "Count the {things}.",
            "What is the number of {things}?",
            "How many {things}?",
        ),
        ("The picture shows how many {things}?", "Tell me how many {things} you see."),
    ),
    "one": (
        (
            "Which digit is this?",
            "What digit is in the picture?",
            "Read the digit.",
            "Which number is this?",
            "What digit do you see?",
            "Name the digit.",
        ),
        ("Tell me which digit this is.", "The picture shows which number?"),
    ),
    "read": (
        (
            "Read the digits {order}.",
            "Which digits are there {order}?",
            "Name the digits {order}.",
            "List the numbers {order}.",
            "What are the digits {order}?",
            "Read the numbers {order}.",
        ),
        ("Tell me the digits {order}.", "Which numbers do you see {order}?"),
    ),
    "where": (
        (
            "Where is the {thing}?",
            "Where do you see the {thing}?",
            "In which part of the picture is the {thing}?",
            "What is the place of the {thing}?",
            "Name the place of the {thing}.",
            "Where in the picture is the {thing}?",
        ),
        ("Tell me where the {thing} is.", "The {thing} is in which part?"),
    ),
    "beside": (
        (
            "What is {side} the {thing}?",
            "What do you see {side} the {thing}?",
            "Which thing is {side} the {thing}?",
            "Name the thing {side} the {thing}.",
            "What is there {side} the {thing}?",
        ),
        ("Tell me what is {side} the {thing}.", "{Side} the {thing} is what?"),
    ),
    "describe": (
        (
            "Describe the picture.",
            "What is in the picture?",
            "What is here?",
            "What do you see?",
            "Name all the things.",
            "List the things in the picture.",
        ),
        ("Tell me what you see.", "The picture shows what?"),
    ),
    "exists": (
        (
            "Is there {a} {thing}?",
            "Do you see {a} {thing}?",
            "Is {a} {thing} in the picture?",
            "Is there {a} {thing} in the picture?",
        ),
        ("Tell me if you see {a} {thing}.", "Does the picture have {a} {thing}?"),
    ),
}


SIDES = {
    "left of": (0, -1),
    "to the left of": (0, -1),
    "right of": (0, 1),
    "to the right of": (0, 1),
    "above": (1, -1),
    "below": (1, 1),
}
THIRDS = (("top left", "top", "top right"), ("left", "middle", "right")) + (
    ("bottom left", "bottom", "bottom right"),
)


# What fills the places of a wording, and the answer.
Filled = tuple[dict[str, str], str]


def _is_clear(scene: Scene, axis: int) -> bool:
    """Whether the things follow one another along an axis with room between."""
    places = sorted(thing.centre[axis] for thing in scene.things)
    sides = [thing.box[2] - thing.box[0] for thing in scene.things]
    gaps = [b - a for a, b in zip(places, places[1:])]
    return all(gap >= 0.3 * min(sides) for gap in gaps)


def _named_once(rng: np.random.Generator, scene: Scene) -> Thing | None:
    names = [thing.name for thing in scene.things]
    single = [thing for thing in scene.things if names.count(thing.name) == 1]
    return _pick(rng, single) if single else None


def _absent(rng: np.random.Generator, scene: Scene, rate: float = 0.14) -> Thing | None:
    """At a given rate, a name that nothing in the scene has; else None."""
    if rng.random() >= rate:
        return None
    colour, kind = _pick(rng, list(COLOURS)), _pick(rng, KINDS)
    return Thing(kind, colour, (0, 0, 0, 0))


def _pick(rng: np.random.Generator, options: Sequence) -> Any:
    return options[int(rng.integers(len(options)))]


def _ask_digit(rng: np.random.Generator, scene: Scene) -> Filled | None:
    if other := _absent(rng, scene):
        taken = any(thing.colour == other.colour for thing in scene.things)
        return None if taken else ({"colour": other.colour}, UNKNOWN)
    colours = [thing.colour for thing in scene.digits]
    single = [thing for thing in scene.digits if colours.count(thing.colour) == 1]
    if not single:
        return None
    thing = _pick(rng, single)
    return {"colour": thing.colour}, thing.kind


def _ask_colour(rng: np.random.Generator, scene: Scene) -> Filled | None:
    kinds = [thing.kind for thing in scene.things]
    if other := _absent(rng, scene):
        return None if other.kind in kinds else ({"thing": other.kind}, UNKNOWN)
    single = [thing for thing in scene.things if kinds.count(thing.kind) == 1]
    if not single:
        return None
    thing = _pick(rng, single)
    return {"thing": thing.kind}, thing.colour


def _ask_count(rng: np.random.Generator, scene: Scene) -> Filled | None:
    digits, everything = len(scene.digits), len(scene.things)
    words = {
        "things": everything,
        "objects": everything,
        "digits": digits,
        "numbers": digits,
        "shapes": everything - digits,
    }
    word = _pick(rng, list(words))
    return {"things": word}, str(words[word])


def _ask_one(rng: np.random.Generator, scene: Scene) -> Filled | None:
    if len(scene.things) != 1 or not scene.digits:
        return None
    return {}, scene.things[0].kind


def _ask_read(rng: np.random.Generator, scene: Scene) -> Filled | None:
    axis = int(rng.random() < 0.3)
    if len(scene.digits) < 2 or not _is_clear(scene, axis):
        return None
    ordered = sorted(scene.digits, key=lambda thing: thing.centre[axis])
    order = ("from left to right", "from top to bottom")[axis]
    return {"order": order}, " ".join(thing.kind for thing in ordered)


def _ask_where(rng: np.random.Generator, scene: Scene) -> Filled | None:
    names = [thing.name for thing in scene.things]
    if other := _absent(rng, scene):
        return None if other.name in names else ({"thing": other.name}, UNKNOWN)
    thing = _named_once(rng, scene)
    if thing is None:
        return None
    size = scene.image.size
    x, y = (place / length for place, length in zip(thing.centre, size))
    near = min(abs(place - edge) for place in (x, y) for edge in (1 / 3, 2 / 3))
    if near < 0.04:
        return None
    return {"thing": thing.name}, THIRDS[int(3 * y)][int(3 * x)]


def _ask_beside(rng: np.random.Generator, scene: Scene) -> Filled | None:
    side = _pick(rng, list(SIDES))
    names = [thing.name for thing in scene.things]
    if other := _absent(rng, scene):
        if other.name in names:
            return None
        return {"side": side, "Side": side.capitalize(), "thing": other.name}, UNKNOWN
    axis, direction = SIDES[side]
    thing = _named_once(rng, scene)
    if thing is None or not _is_clear(scene, axis):
        return None
    ordered = sorted(scene.things, key=lambda thing: thing.centre[axis])
    place = ordered.index(thing) + direction
    # Something at the edge has nothing beside it: asked now and then only.
    inside = 0 <= place < len(ordered)
    if not inside and rng.random() < 0.6:
        return None
    answer = ordered[place].name if inside else "nothing"
    return {"side": side, "Side": side.capitalize(), "thing": thing.name}, answer


def _ask_describe(rng: np.random.Generator, scene: Scene) -> Filled | None:
    if not _is_clear(scene, 0):
        return None
    return {}, ", ".join(thing.name for thing in scene.things) or "nothing"


def _ask_exists(rng: np.random.Generator, scene: Scene) -> Filled | None:
    kinds = [thing.kind for thing in scene.things]
    there = bool(kinds) and rng.random() < 0.5
    kind = _pick(rng, kinds if there else [k for k in KINDS if k not in kinds])
    return {"a": "an" if kind == "8" else "a", "thing": kind}, "yes" if there else "no"


_ASK = {
    "digit": _ask_digit,
    "colour": _ask_colour,
    "count": _ask_count,
    "one": _ask_one,
    "read": _ask_read,
    "where": _ask_where,
    "beside": _ask_beside,
    "describe": _ask_describe,
    "exists": _ask_exists,
}


def ask(
    rng: np.random.Generator, scene: Scene, kind: str, unseen_wording: bool = False
) -> Question | None:
    """A random question of one kind about a scene, if the scene allows one.

    Args:
        rng: numpy Generator.
        scene: Scene.
        kind: a key of WORDINGS.
        unseen_wording: take a wording that training never uses.

    Returns:
        Question, or None: for instance, an order is only asked for where it is clear.
    """
    filled = _ASK[kind](rng, scene)
    if filled is None:
        return None
    names, answer = filled
    template = _pick(rng, WORDINGS[kind][unseen_wording])
    text = template.format(**names)
    return Question(kind, text, answer)
