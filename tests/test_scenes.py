"""Drawn pictures, and every answer derived a second time from what is on them."""

import re
import sys

import numpy as np
import pytest

from mllama_lite import InputError, image_to_tiles
from mllama_lite.small_model.questions import UNKNOWN, WORDINGS, ask
from mllama_lite.small_model.scenes import (
    COLOURS,
    DIGITS,
    KINDS,
    MAX_THINGS,
    SHAPES,
    SPLITS,
    TILE,
    draw_scene,
    load_masks,
)
from mllama_lite.tiles import canvases


@pytest.fixture(scope="module")
def masks():
    return load_masks("train")


@pytest.fixture(scope="module")
def scenes(masks):
    """Four hundred scenes, of all sizes and with any number of things."""
    return [draw_scene(np.random.default_rng(seed), masks) for seed in range(400)]


@pytest.fixture(scope="module")
def asked(scenes):
    """(scene, question, unseen wording): what each kind makes of each scene."""
    found = []
    for seed, scene in enumerate(scenes):
        for unseen in (False, True):
            rng = np.random.default_rng([seed, 1 + unseen])
            for kind in WORDINGS:
                for _ in range(3):
                    if question := ask(rng, scene, kind, unseen):
                        found.append((scene, question, unseen))
    return found


# What may stand in the gaps of a wording.
COLOUR = "(?:" + "|".join(COLOURS) + ")"
KIND = "(?:" + "|".join(KINDS) + ")"
SIDE = "(?:(?:to the )?(?:left|right) of|above|below)"
GAPS = {
    "colour": COLOUR,
    "thing": f"(?:{COLOUR} )?{KIND}",
    "things": "(?:things|objects|digits|numbers|shapes)",
    "order": "(?:from left to right|from top to bottom)",
    "side": SIDE,
    "Side": "(?i:" + SIDE + ")",
    "a": "an?",
}


def fits(template, text):
    """Whether a text is a wording with its gaps filled."""
    parts = re.split(r"\{(\w+)\}", template)
    parts[::2], parts[1::2] = map(re.escape, parts[::2]), (GAPS[p] for p in parts[1::2])
    return re.fullmatch("".join(parts), text)


def kind_of(text):
    """The kind of a question in a wording that is trained."""
    (kind,) = {
        k for k, (seen, _) in WORDINGS.items() if any(fits(t, text) for t in seen)
    }
    return kind


def middle(thing):
    """(x, y) of the middle of a thing's box."""
    return np.array([thing.box[:2], thing.box[2:]]).mean(axis=0)


def in_order(things, axis):
    """Things along an axis, and whether no two are at nearly the same place."""
    things = sorted(things, key=lambda thing: middle(thing)[axis])
    steps = np.diff([middle(thing)[axis] for thing in things])
    return things, all(steps > 7)


def oracle(kind, text, scene):
    """The answer to a question, from its words and what is on the picture.

    Fails if the question has no answer, or more than one.
    """
    colours = re.findall(rf"\b{COLOUR}\b", text)
    kinds = re.findall(rf"\b{KIND}\b", text)
    things, digits = scene.things, [t for t in scene.things if t.kind.isdigit()]
    if kind == "digit":
        (colour,) = colours
        if not any(thing.colour == colour for thing in things):
            return UNKNOWN
        (found,) = [thing.kind for thing in digits if thing.colour == colour]
        return found
    if kind == "colour":
        if kinds[0] not in [thing.kind for thing in things]:
            return UNKNOWN
        (found,) = [thing.colour for thing in things if thing.kind == kinds[0]]
        return found
    if kind == "count":
        (word,) = re.findall(r"\b(?:things|objects|digits|numbers|shapes)\b", text)
        shapes = [thing for thing in things if thing.kind in SHAPES]
        counted = {"digits": digits, "numbers": digits, "shapes": shapes}
        return str(len(counted.get(word, things)))
    if kind == "one":
        (digit,) = things
        assert digit.kind.isdigit()
        return digit.kind
    if kind in ("read", "describe"):
        axis = int("from top to bottom" in text)
        ordered, clear = in_order(things, axis)
        assert clear
        if kind == "describe":
            return ", ".join(f"{t.colour} {t.kind}" for t in ordered) or "nothing"
        assert len(digits) > 1
        return " ".join(thing.kind for thing in ordered if thing.kind.isdigit())
    if kind == "exists":
        assert ("an 8" in text) == (kinds == ["8"])
        return "yes" if kinds[0] in [thing.kind for thing in things] else "no"
    named = [t for t in things if [t.colour] == colours and [t.kind] == kinds]
    if not named:
        return UNKNOWN
    (named,) = named
    if kind == "where":
        place = middle(named) / scene.image.size
        away = np.abs(place[:, None] - np.array([1 / 3, 2 / 3]))
        assert away.min() > 0.03
        column, row = ((p > 1 / 3) + int(p > 2 / 3) for p in place)
        across, down = ("left", "", "right")[column], ("top", "", "bottom")[row]
        return f"{down} {across}".strip() or "middle"
    assert kind == "beside"
    (side,) = re.findall(r"left|right|above|below", text.lower())
    axis, last = side in ("above", "below"), side in ("left", "above")
    assert in_order(things, int(axis))[1]
    here = middle(named)[int(axis)]
    beyond = [
        (abs(middle(t)[int(axis)] - here), t.colour, t.kind)
        for t in things
        if (middle(t)[int(axis)] < here if last else middle(t)[int(axis)] > here)
    ]
    return " ".join(min(beyond)[1:]) if beyond else "nothing"


def test_a_scene_is_a_function_of_its_seed(masks, scenes):
    for seed in range(30):
        again = draw_scene(np.random.default_rng(seed), masks)
        assert again.things == scenes[seed].things
        assert again.image.tobytes() == scenes[seed].image.tobytes()
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


def test_things_lie_inside_the_picture_and_apart(scenes, masks):
    rng = np.random.default_rng(5)
    crowded = [draw_scene(rng, masks, 12, strength=2.0) for _ in range(100)]
    for scene in scenes + crowded:
        times = np.zeros(scene.image.size[::-1], dtype=int)
        for thing in scene.things:
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= scene.image.width
            assert 0 <= top < bottom <= scene.image.height
            times[top:bottom, left:right] += 1
        assert times.max(initial=0) <= 1
    assert max(len(scene.things) for scene in crowded) > MAX_THINGS
    assert {len(scene.things) for scene in scenes} == set(range(MAX_THINGS + 1))


def test_ink_is_in_the_boxes_and_of_the_right_colour(scenes):
    names, inks = list(COLOURS), np.array(list(COLOURS.values()))
    for scene in scenes:
        pixels = np.asarray(scene.image).astype(int)
        paper = np.ones(pixels.shape[:2], dtype=bool)
        for thing in scene.things:
            left, top, right, bottom = thing.box
            paper[top:bottom, left:right] = False
            box = pixels[top:bottom, left:right].reshape(-1, 3)
            darkest = box[box.min(axis=1).argmin()]
            nearest = np.abs(inks - darkest).sum(axis=1).argmin()
            assert darkest.min() < 100 and names[nearest] == thing.colour
        assert pixels[paper].min() > 180


def test_things_come_from_left_to_right(scenes):
    for scene in scenes:
        places = [middle(thing)[0] for thing in scene.things]
        assert places == sorted(places)
        assert scene.digits == tuple(t for t in scene.things if t.kind in DIGITS)
    assert {t.kind for scene in scenes for t in scene.things} == set(KINDS)


@pytest.mark.parametrize("canvas", canvases())
def test_a_picture_gets_the_canvas_it_was_sized_for(masks, canvas):
    rng, sizes = np.random.default_rng(7), set()
    for _ in range(20):
        scene = draw_scene(rng, masks, canvas=canvas)
        assert image_to_tiles(scene.image, TILE).canvas == canvas
        sizes.add(scene.image.size)
    assert len(sizes) > 10


def test_all_canvases_occur(scenes):
    found = [image_to_tiles(scene.image, TILE).canvas for scene in scenes]
    assert all(found.count(canvas) >= 25 for canvas in canvases())


def test_numbers_and_kinds_are_kept_to(masks):
    rng = np.random.default_rng(3)
    for number in range(5):
        settings = {"num_things": number, "kinds": ("7", "star"), "canvas": (2, 2)}
        scenes = [draw_scene(rng, masks, **settings) for _ in range(20)]
        assert max(len(scene.things) for scene in scenes) == number
        assert {t.kind for scene in scenes for t in scene.things} <= {"7", "star"}


def test_splits_are_disjoint_and_whole():
    """Each mask, made small again, is nearest to a scan of its own split."""
    from sklearn.datasets import load_digits

    assert SPLITS["test"] == (1797 - 360, 1797)
    scans, labels = load_digits(return_X_y=True)
    served = np.zeros(len(scans), dtype=int)
    for split, (first, end) in SPLITS.items():
        served[first:end] += 1
        masks = load_masks(split)
        assert set(masks) == set(KINDS)
        assert sum(len(masks[digit]) for digit in DIGITS) == end - first
        for digit in DIGITS:
            # A pixel of a scan covers 4 x 4 here, and its value is in their middle.
            large = np.array([np.asarray(mask, dtype=float) for mask in masks[digit]])
            parts = [large[:, y:36:4, x:36:4] for y in (5, 6) for x in (5, 6)]
            small = np.mean(parts, axis=0).reshape(-1, 64) * 16 / 255
            distances = ((small[:, None] - scans) ** 2).sum(axis=-1)
            nearest = distances.argmin(axis=1)
            assert nearest.tolist() == [
                i for i in range(first, end) if labels[i] == int(digit)
            ]
    assert (served == 1).all() and len(served) == 1797


def test_every_answer_is_right_and_the_only_one(asked):
    answers = {kind: set() for kind in WORDINGS}
    for scene, question, _ in asked:
        want = oracle(question.kind, question.text, scene)
        assert question.answer == want, (question, scene)
        answers[question.kind].add(want)
    for kind in ("digit", "colour", "where", "beside"):
        assert UNKNOWN in answers[kind]
    for kind in set(WORDINGS) - {"digit", "colour", "where", "beside"}:
        assert UNKNOWN not in answers[kind]
    assert answers["digit"] >= set(DIGITS) and answers["one"] == set(DIGITS)
    assert answers["colour"] >= set(COLOURS)
    assert answers["count"] == {"0", "1", "2", "3", "4"}
    assert answers["exists"] == {"yes", "no"}
    assert len(answers["where"]) == 9 + 1
    assert "nothing" in answers["beside"] and "nothing" in answers["describe"]
    assert {len(answer.split()) for answer in answers["read"]} == {2, 3, 4}


def test_questions_about_what_is_there_are_asked(asked):
    """Not only the easy ones: things that are there far outnumber those that are not."""
    for kind in ("digit", "colour", "where", "beside"):
        answers = [q.answer for _, q, _ in asked if q.kind == kind]
        assert len(answers) > 300 and answers.count(UNKNOWN) < 0.35 * len(answers)


def test_wordings_that_are_never_trained(asked):
    trained = [t for seen, _ in WORDINGS.values() for t in seen]
    others = [t for _, unseen in WORDINGS.values() for t in unseen]
    assert not set(trained) & set(others)
    texts = {unseen: {q.text for _, q, u in asked if u == unseen} for unseen in (0, 1)}
    for unseen, mine, theirs in ((0, trained, others), (1, others, trained)):
        used = {t: {text for text in texts[unseen] if fits(t, text)} for t in mine}
        assert all(used.values())  # each wording is used, and nothing else is
        assert set.union(*used.values()) == texts[unseen]
        assert not any(fits(t, text) for t in theirs for text in texts[unseen])


def test_a_wording_tells_the_kind_of_its_question(asked):
    for _, question, unseen in asked:
        assert unseen or kind_of(question.text) == question.kind


def test_a_question_is_a_function_of_its_seed(scenes):
    def draw(seed, kind):
        return ask(np.random.default_rng(seed), scenes[seed], kind)

    for kind in WORDINGS:
        questions = [draw(seed, kind) for seed in range(40)]
        assert questions == [draw(seed, kind) for seed in range(40)]
        assert len({question.text for question in questions if question}) > 3


def test_a_wrong_split():
    with pytest.raises(InputError, match="The split is 'dev'.*train, validation, test"):
        load_masks("dev")


def test_without_scikit_learn(monkeypatch):
    for name in ("sklearn", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="pip install scikit-learn"):
        load_masks("train")
