"""The figures of chapter 11 against what was recorded and the package."""

import json
import math

import pytest
import torch

import conftest
from mllama_lite import load
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.small_model.questions import Question
from mllama_lite.small_model.training import Plan, encode_turns
from mllama_lite.tiles import open_image

GATES = {
    "places in a tile": "vision_model.gated_positional_embedding.gate",
    "tiles, before": "vision_model.pre_tile_positional_embedding.gate",
    "global 0, attention": "vision_model.global_transformer.layers.0.gate_attn",
    "global 1, attention": "vision_model.global_transformer.layers.1.gate_attn",
    "layer 3, attention": "language_model.model.layers.3.cross_attn_attn_gate",
    "layer 3, MLP": "language_model.model.layers.3.cross_attn_mlp_gate",
    "layer 5, attention": "language_model.model.layers.5.cross_attn_attn_gate",
}


def rounded(value):
    return float(f"{value:.3g}")


@pytest.fixture(scope="module")
def history():
    path = conftest.ROOT / "notebooks" / "measured" / "history" / "first.json"
    return json.loads(path.read_text("utf-8"))


def test_training_run_has_the_recorded_numbers(figure, history):
    shown, checked = figure("training_run"), None
    shown.set("From step", 200)
    for entry in history:
        shown.set("To step", entry["step"])
        now = shown.values()[1]
        assert now["step"] == entry["step"]
        losses = {name: rounded(v) for name, v in entry["patches"].items()}
        for name in ("kind", "colour", "from the left"):
            assert now["losses"].pop(name) == losses[name]
        assert now["losses"] == {"answers": rounded(entry["answers"]) or None}
        gates = {name: rounded(entry["gates"][gate]) for name, gate in GATES.items()}
        assert now["gates"] == gates
        checked = entry if "validation" in entry else checked
        assert now["check"] == (checked and checked["step"])
        if checked:
            wanted = dict(checked["validation"])
            assert now["all"] == pytest.approx(wanted.pop("all"), abs=1e-5)
            assert now["right"] == pytest.approx(wanted)
            assert list(now["right"]) == list(wanted)
        else:
            assert now["right"] is None


def test_training_run_knows_the_learning_rate(figure):
    shown, plan = figure("training_run"), Plan()
    for step in (200, 4800, 5000, 5200, 9400, 9600, 11800, 12000):
        shown.set("From step", step)
        shown.set("To step", step)
        rate = shown.values()[0]["rate"]
        assert rate == pytest.approx(plan.learning_rate(step))


def test_training_run_tells_finding_from_settling(figure, history):
    shown = figure("training_run")
    assert "goes from 0.232 to 0.171, by a factor of 1.4. " in shown.words()
    assert "69 %, then 85 % of 440." in shown.words()
    assert "learning rate" not in shown.words()
    shown.set("From step", 9400)
    shown.set("To step", 12000)
    of = {entry["step"]: entry["answers"] for entry in history}
    factor = rounded(of[9400]) / rounded(of[12000])
    assert math.isclose(factor, 6.1, abs_tol=0.05)
    assert f"by a factor of {factor:.1f}. " in shown.words()
    assert "85 %, then 97 % of 440." in shown.words()
    assert "learning rate is down to 0 %" in shown.words()


def test_training_run_before_questions_and_in_either_order(figure):
    shown = figure("training_run")
    shown.set("To step", 5200)
    shown.set("From step", 4800)
    assert "Questions begin at step 5,000" in shown.words()
    assert "the loss for kinds goes from 0.388 to 0.186" in shown.words()
    told = shown.words()
    shown.set("From step", 5200)
    shown.set("To step", 4800)
    assert shown.words() == told
    shown.set("From step", 1000)
    assert "No questions are asked yet" in shown.words()
    assert "%" not in shown.words()


def test_training_run_by_the_handles(figure):
    shown = figure("training_run")
    handle = shown.root.locator("circle[data-drag='1']")
    box, mouse = handle.bounding_box(), shown.page.mouse
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(box["x"] + 500, box["y"])
    mouse.up()
    assert shown.values()[1]["step"] == 12000


LATER = Question("count", "How many digits are there?", "3")


@pytest.fixture(scope="module")
def small():
    return load(dtype="float32", device="cpu")


@pytest.fixture
def shift(figure):
    shown = figure("label_shift")
    shown.page.wait_for_function(
        "() => document.querySelector('.mllama-figure').figure.numbers()"
    )
    return shown


def want(small, shown, question, answer, second=False):
    """What the package makes of what is typed; it is typed too."""
    shown.set("Question", question)
    shown.set("Answer", answer)
    shown.set("A second turn", second)
    turns = [Question("", question, answer), *[LATER] * second]
    return encode_turns(small.tokenizer, turns)


@pytest.mark.parametrize(
    "question, answer, second",
    [
        ("Read the digits from left to right.", "3 1 9", False),
        ("Is there a 7?", "no", True),
        ("<|eot_id|> \u4f60\u597d  caf\u00e9", "I don't know", True),
        ("", "", False),
    ],
)
def test_label_shift_is_encode_turns(small, shift, question, answer, second):
    tokens, labels = want(small, shift, question, answer, second)
    values = shift.values()
    assert (values["tokens"], values["labels"]) == (tokens, labels)
    learned = [i for i, label in enumerate(labels) if label >= 0]
    assert all(labels[i] == tokens[i + 1] for i in learned)
    assert values["learned"] == len(learned)
    assert f"{len(learned)} of {len(tokens)} places count." in shift.words()
    assert int(shift.control("Place").get_attribute("max")) == len(tokens) - 1
    shift.set("Place", 0)
    assert "Place 0, \u201cbegin\u201d, counts for nothing." in shift.words()
    shift.set("Place", learned[-1])
    assert "has to say \u201ceot\u201d." in shift.words()


def test_label_shift_shows_parts_of_letters_as_bytes(small, shift):
    tokens, labels = want(small, shift, "Name the digit.", "\u4f60")
    assert len(tokens) - labels.index(tokens[-1]) == 2  # the end is learned last
    shift.set("Place", labels.index(tokens[-4]))
    assert "has to say \u201ce4\u201d." in shift.words()


def test_label_shift_other_labels(small, shift):
    tokens, labels = want(small, shift, "Name the digit.", "7", True)
    end = small.tokenizer.special["<|eot_id|>"]
    shift.set("Labels", "of answers, no end of turn")
    ended = [-100 if label == end else label for label in labels]
    assert shift.values()["labels"] == ended
    assert "Nothing teaches the model to stop." in shift.words()
    shift.set("Labels", "of answers, not shifted")
    answers = [i for i, label in enumerate(labels, 1) if label >= 0]
    copied = [token if i in answers else -100 for i, token in enumerate(tokens)]
    assert shift.values()["labels"] == copied
    shift.set("Place", answers[0])
    assert "has to say \u201c7\u201d, which it has just read." in shift.words()
    shift.set("Labels", "of every token")
    image = small.tokenizer.image_id
    following = [-100 if token == image else token for token in tokens[1:]] + [-100]
    assert shift.values()["labels"] == following


def test_label_shift_loss_is_the_models(small, shift):
    picture = open_image(find_folder() / "pictures" / "digits.png")
    question = "Read the digits from left to right."
    shift.press("Load the model")
    shift.page.wait_for_function(
        "() => document.querySelector('.mllama-figure').figure.numbers().cost",
        timeout=60_000,
    )
    means = {}
    for answer, mode in (
        ("3 1 9", "of answers alone"),
        ("3 7 9", "of answers alone"),
        ("3 1 9", "of every token"),
        ("3 1 9", "of answers, not shifted"),
    ):
        tokens, _ = want(small, shift, question, answer, mode == "of every token")
        shift.set("Labels", mode)
        values = shift.values()
        probable = small.logits(tokens, [picture]).log_softmax(-1)
        labels = torch.tensor(values["labels"])
        picked = -probable.gather(1, labels.clamp(min=0)[:, None])[:, 0]
        for cost, label, price in zip(values["cost"], labels, picked.tolist()):
            assert cost == (pytest.approx(price, abs=1e-3) if label >= 0 else None)
        mean = picked[labels >= 0].mean().item()
        assert values["mean"] == pytest.approx(mean, abs=1e-3)
        assert f"The loss is the mean of the {values['learned']}: " in shift.words()
        means[answer, mode] = mean
    right, spoilt, every, copied = means.values()
    assert right < 0.05 and spoilt > 1 and every > 10 and copied > 5
