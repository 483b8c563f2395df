"""Measuring: what is asked, what is counted, and what the figures mean."""

import re
import statistics
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from mllama_lite import VLM, InputError, load
from mllama_lite.small_model.evaluation import (
    ROWS,
    Item,
    answers,
    best_guesses,
    exact_match,
    held_out,
    interval,
    row_of,
    table,
)
from mllama_lite.small_model.questions import Question
from mllama_lite.small_model.scenes import SPLITS
from mllama_lite.small_model.training import (
    DRAWINGS,
    DRAWN_NUMBERS,
    DRAWN_ROWS,
    Plan,
)
from mllama_lite.tokenizer import ImagePart
from test_scenes import kind_of


@pytest.fixture(scope="module")
def items():
    return held_out("validation", 12)


@pytest.fixture(scope="module")
def vlm():
    return load(device="cpu", dtype="float32")


def item(row, text, answer):
    return Item(row, Question("digit", text, answer), None)


def test_each_row_has_as_many_questions(items):
    assert [one.row for one in items] == [row for row in ROWS for _ in range(12)]
    assert len({one.image.tobytes() for one in items}) == len(items)
    for one in items:
        kind, words = ROWS[one.row][0], one.question.answer.split()
        assert one.question.kind == kind == kind_of(one.question.text)
        upright = "above" in one.question.text or "below" in one.question.text
        if kind == "read":
            assert one.row == f"read {['two', 'three'][len(words) - 2]} digits"
        if kind == "beside":
            assert one.row == ("above or below" if upright else "left or right of")


def test_four_digits_in_order_are_in_no_row():
    assert (
        row_of(Question("read", "Read the digits from left to right.", "1 2 3 4"))
        is None
    )


def test_questions_are_a_function_of_split_count_and_seed(items):
    def key(items):
        return [(one.row, one.question, one.image.tobytes()) for one in items]

    same = key(items)
    assert key(held_out("validation", 12)) == same
    assert not set(key(held_out("validation", 12, seed=1))) & set(same)
    # Another split has other pictures, those without any digit too.
    others = held_out("test", 12)
    assert not {image for *_, image in key(others)} & {image for *_, image in same}
    # More questions are the same ones and others after them.
    longer = [one for one in held_out("validation", 15)]
    first = [one for i, one in enumerate(longer) if i % 15 < 12]
    assert key(first) == same


@pytest.mark.parametrize("unseen", [False, True])
def test_no_batch_of_a_training_has_the_random_numbers_of_held_out(monkeypatch, unseen):
    """numpy drops zeros at the end of a seed: [0, 7, 0] is [0, 7], and so is step 7."""
    begun, real = [], np.random.default_rng
    monkeypatch.setattr(
        np.random, "default_rng", lambda seed: begun.append(seed) or real(seed)
    )
    for split in SPLITS:
        held_out(split, 1, unseen_wording=unseen)
    monkeypatch.undo()
    held = [real(seed).random(4).tolist() for seed in begun]
    trained = [
        real([plan.seed, step]).random(4).tolist()
        for plan in (Plan(), DRAWINGS, DRAWN_ROWS, DRAWN_NUMBERS)
        for step in range(plan.steps)
    ]
    assert len(held) == 33 and len({tuple(numbers) for numbers in held}) == 33
    assert not [numbers for numbers in held if numbers in trained]


def test_unseen_wordings_are_other_wordings(items):
    unseen = held_out("validation", 12, unseen_wording=True)
    assert [one.row for one in unseen] == [one.row for one in items]
    texts = {one.question.text for one in items}
    assert not texts & {one.question.text for one in unseen}
    for one in unseen:
        with pytest.raises(ValueError):  # no trained wording tells its kind
            kind_of(one.question.text)


@pytest.mark.parametrize("count", [0, -3])
def test_bad_counts(count):
    with pytest.raises(InputError, match=f"a row is {count}"):
        held_out("validation", count)


def test_bad_words(items):
    with pytest.raises(InputError, match="The split is 'dev'"):
        held_out("dev", 1)
    with pytest.raises(InputError, match="The images are 'grey'"):
        answers(None, items, "grey")


def test_a_model_without_a_tokenizer(vlm, items):
    with pytest.raises(InputError, match="no tokenizer"):
        answers(VLM(vlm.model), items[:2])


def test_answers_equal_asking_one_by_one(vlm, items):
    some = items[::6]
    assert len(some) == 22 and len({one.row for one in some}) == len(ROWS)
    together = answers(vlm, some, batch=5)
    alone = [vlm.ask(one.question.text, one.image, 32) for one in some]
    assert together == alone and len(set(alone)) > 3
    blind = [vlm.ask(one.question.text, None, 32) for one in some]
    assert answers(vlm, some, "none") == blind


def shown(vlm, items, images, monkeypatch):
    """For each item the pictures that `answers` gives the model with its question."""
    given = {}

    def generate_batch(rows, pictures, max_new_tokens):
        for row, own in zip(rows, pictures):
            text = vlm.tokenizer.decode(row)
            assert text.count("<|image|>") == len(own)
            given[int(re.search(r"Question (\d+)!", text)[1])] = own
        return [[] for _ in rows]

    with monkeypatch.context() as patch:
        patch.setattr(vlm, "generate_batch", generate_batch)
        answers(vlm, items, images)
    return [given[i] for i in range(len(items))]


@pytest.mark.parametrize("length", range(2, 24))
def test_pictures_are_changed(vlm, monkeypatch, length):
    """Each question gets its own picture, another's, white paper, or none."""
    pictures = [Image.new("RGB", (50 + i % 5, 60), "red") for i in range(length)]
    questions = [Question("count", f"Question {i}!", "") for i in range(length)]
    items = [Item("count", q, image) for q, image in zip(questions, pictures)]
    for (picture,), own in zip(shown(vlm, items, "own", monkeypatch), pictures):
        assert picture is own
    for (picture,), own in zip(shown(vlm, items, "wrong", monkeypatch), pictures):
        assert picture is not own and any(picture is other for other in pictures)
    for (picture,), own in zip(shown(vlm, items, "blank", monkeypatch), pictures):
        assert picture.size == own.size and picture.getextrema() == ((255, 255),) * 3
    assert shown(vlm, items, "none", monkeypatch) == [[]] * length


def test_the_picture_reaches_the_logits(vlm, items):
    """What is changed is seen: the model expects other words."""
    one, other = items[0], items[50]
    message = [{"role": "user", "content": [ImagePart(one.image), one.question.text]}]
    tokens, _ = vlm.tokenizer.encode_chat(message)
    a, b = (vlm.logits(tokens, [image])[-1] for image in (one.image, other.image))
    assert (a - b).abs().max() > 1e-3


def test_exact_match_counts_letters_and_rows():
    items = [
        item("colour", "?", "red"),
        item("one", "?", "4"),
        item("colour", "?", "no"),
    ]
    counts = exact_match(items, ["red", "4 ", "No"])
    assert list(counts.items()) == [
        ("colour", (1, 2)),
        ("one", (0, 1)),
        ("all", (1, 3)),
    ]
    assert exact_match(items, ["red", "4", "no"])["all"] == (3, 3)
    with pytest.raises(ValueError):
        exact_match(items, ["red"])


def solve(right, total, z, low, high):
    """Where |share - p| = z·sqrt(p(1 - p)/total) between low and high, by bisection."""

    def excess(p):
        return abs(right / total - p) - z * (p * (1 - p) / total) ** 0.5

    rising = excess(high) > excess(low)
    for _ in range(200):
        middle = (low + high) / 2
        if (excess(middle) > 0) == rising:
            high = middle
        else:
            low = middle
    return (low + high) / 2


def test_interval_solves_the_score_equation():
    """The bounds are the shares from which the count would be z deviations away."""
    z = statistics.NormalDist().inv_cdf(0.975)
    for right, total in [(0, 9), (1, 9), (250, 500), (499, 500), (500, 500), (3, 7)]:
        low, high = interval(right, total)
        share = right / total
        want_low = solve(right, total, z, 0.0, share) if right else 0.0
        want_high = solve(right, total, z, share, 1.0) if right < total else 1.0
        assert abs(low - want_low) < 2e-5 and abs(high - want_high) < 2e-5
        assert 0 <= low <= share + 1e-12 and share <= high + 1e-12 and high <= 1


def test_interval_covers_what_it_should():
    """Summed over all counts, exactly: close to 95%, whatever the true share."""
    total, log = 100, torch.lgamma
    n = torch.arange(total + 1, dtype=torch.float64)
    ways = log(torch.tensor(total + 1.0)) - log(n + 1) - log(total - n + 1)
    bounds = [interval(right, total) for right in range(total + 1)]
    covered = []
    for share in torch.linspace(0.05, 0.95, 91, dtype=torch.float64):
        chance = (ways + n * share.log() + (total - n) * (1 - share).log()).exp()
        inside = torch.tensor([low <= share <= high for low, high in bounds])
        assert abs(chance.sum() - 1) < 1e-4
        covered.append(chance[inside].sum())
    assert 0.91 < min(covered) and abs(torch.stack(covered).mean() - 0.95) < 0.005


def test_best_guesses_beat_every_constant_on_their_own_sample():
    sample = held_out("train", 60, seed=1)
    for enough in (1, 20, 10**6):
        guessed = exact_match(sample, best_guesses(sample, sample, enough))
        for row in ROWS:
            answers_of_row = [one.question.answer for one in sample if one.row == row]
            ((_, often),) = Counter(answers_of_row).most_common(1)
            assert guessed[row][0] >= often, (row, enough)
            if enough == 10**6:
                assert guessed[row][0] == often


def test_best_guesses_go_by_the_words_if_they_occurred_often_enough():
    sample = [item("a", "x?", "1")] * 3 + [item("a", "y?", "2")] * 4
    asked = [item("a", "x?", ""), item("a", "y?", ""), item("a", "z?", "")]
    assert best_guesses(asked, sample, enough=3) == ["1", "2", "2"]
    assert best_guesses(asked, sample, enough=4) == ["2", "2", "2"]


def test_the_table_holds_all_figures():
    columns = {
        "right": {"colour": (3, 4), "all": (3, 4)},
        "blank": {"colour": (1, 4), "all": (2, 4)},
    }
    heading, *lines = table(columns).splitlines()
    assert heading.split() == ["right", "95%", "interval", "blank"]
    low, high = interval(3, 4)
    bounds = f"{low:.3f}-{high:.3f}"
    assert [line.split() for line in lines] == [
        ["colour", "0.750", bounds, "0.250"],
        ["all", "0.750", bounds, "0.500"],
    ]
