"""The figures of chapter 11 against what was recorded and the package."""

import json
import math

import pytest

import conftest
from mllama_lite.small_model.training import Plan

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
    path = conftest.ROOT / "notebooks" / "measured" / "history.json"
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
