"""Drawings with a pen, and the training that goes on with them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.svm import SVC

import cases
from mllama_lite import InputError, load
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.checkpoints.loading import save_model
from mllama_lite.small_model import training
from mllama_lite.small_model.pen import WAYS, draw_with_pen, pen_masks, written
from mllama_lite.small_model.scenes import (
    COLOURS,
    DIGITS,
    KINDS,
    SHAPES,
    TILE,
    draw_row,
    draw_scene,
    draw_shape,
    load_masks,
)
from mllama_lite.small_model.training import (
    DRAWINGS,
    draw_batch,
    new_trainer,
    train,
)
from mllama_lite.tiles import canvases, choose_canvas
from test_pretrain import same_batch

SMALL = str(find_folder())


@pytest.fixture(scope="module")
def pens():
    return pen_masks(count=60)


def ink(mask):
    """(width, height) of what is drawn, in pixels."""
    rows, columns = np.nonzero(np.asarray(mask) > 127)
    return np.ptp(columns) + 1, np.ptp(rows) + 1


def test_every_kind_is_drawn_and_every_drawing_is_another(pens):
    assert set(pens) == set(WAYS) == set(KINDS)
    assert all(len(masks) == 60 for masks in pens.values())
    drawn = [m for kind in DIGITS for m in pens[kind]]
    drawn += [m for kind in SHAPES for m in pens[kind][1::2]]
    assert {(m.size, m.mode) for m in drawn} == {((40, 40), "L")}
    assert len({m.tobytes() for m in drawn}) == len(drawn)
    for kind in SHAPES:
        filled = {m.tobytes() for m in pens[kind][::2]}
        assert filled == {draw_shape(kind).tobytes()}


def test_a_drawing_is_a_function_of_its_numbers(pens):
    again = pen_masks.__wrapped__(count=60)  # not the ones that are kept
    assert {k: [m.tobytes() for m in again[k]] for k in again} == {
        k: [m.tobytes() for m in pens[k]] for k in pens
    }
    other = pen_masks(seed=1, count=1)
    assert all(other[kind][0].tobytes() != pens[kind][0].tobytes() for kind in DIGITS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_is_drawn_large_enough_and_stays_a_line(kind):
    rng = np.random.default_rng(2)
    for _ in range(100):
        mask = draw_with_pen(rng, kind)
        width, height = ink(mask)
        assert max(width, height) >= 14 and 30 < np.asarray(mask).sum() / 255 < 1200
        if kind == "0":
            assert width < height


def test_every_way_is_used_and_keeps_its_strokes(monkeypatch):
    rng, used = np.random.default_rng(0), set()
    for kind, ways in WAYS.items():
        for number, way in enumerate(ways):
            strokes = written(rng, way)
            assert [len(s) for s in strokes] == [40] * len(way)
            for mine, points in zip(strokes, way):
                ends = np.array([points[0], points[-1]])
                assert np.abs(mine[[0, -1]] - ends).max() < 0.6, (kind, number)
    from mllama_lite.small_model import pen

    def recording(rng, way):
        used.add(id(way))
        return written(rng, way)

    monkeypatch.setattr(pen, "written", recording)
    pen_masks.__wrapped__(count=40)
    assert used == {id(way) for ways in WAYS.values() for way in ways}


def test_drawings_can_be_told_apart(pens):
    """By a classifier that knows other drawings: no two kinds are the same figure."""

    def small(masks):
        return [np.asarray(m.resize((14, 14))).flatten() / 255 for m in masks]

    kinds = [kind for kind in pens for _ in pens[kind]]
    known = SVC(gamma=0.02, C=10).fit(sum(map(small, pens.values()), []), kinds)
    asked = pen_masks(seed=7, count=20)
    right = [known.predict(small(masks)) == kind for kind, masks in asked.items()]
    assert np.mean(right) > 0.9 and min(np.mean(r) for r in right) > 0.6


@pytest.fixture(scope="module")
def fresh():
    return new_trainer(replace(DRAWINGS, joint_steps=3, images=4, questions=1))


def batch(fresh, plan, step, pens):
    config = fresh.model.config.vision
    return draw_batch(plan, step, fresh.masks, fresh.tokenizer, config, True, pens)


def test_a_plan_without_drawings_is_what_it_was(fresh, pens):
    plan = replace(fresh.plan, drawn=0.0)
    for step in range(4):
        assert same_batch(
            batch(fresh, plan, step, None), batch(fresh, plan, step, pens)
        )
    assert new_trainer(replace(plan, joint_steps=1)).pens is None
    with pytest.raises(InputError, match="drawn 0.5, and there are no pens"):
        batch(fresh, fresh.plan, 0, None)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_share_of_scenes_is_drawn(fresh, pens, monkeypatch, share):
    inks = []

    def recording(rng, masks, *rest):
        inks.append(masks)
        return draw_scene(rng, masks, *rest)

    monkeypatch.setattr(training, "draw_scene", recording)
    plan = replace(fresh.plan, drawn=share, images=1)
    for step in range(200):
        batch(fresh, plan, step, pens)
    assert {id(m) for m in inks} <= {id(pens), id(fresh.masks)}
    got = np.mean([m is pens for m in inks])
    assert abs(got - share) <= 4 * (share * (1 - share) / 200) ** 0.5


def test_rows_are_drawn_where_the_plan_says(fresh, pens, monkeypatch):
    drawn = []

    def recording(rng, masks, crowd, strength, kinds, canvas):
        drawn.append((masks, canvas))
        return draw_row(rng, masks, crowd, strength, kinds, canvas)

    monkeypatch.setattr(training, "draw_row", recording)
    plan = replace(fresh.plan, rows=1.0, drawn=1.0, images=1)
    for step in range(100):
        batch(fresh, plan, step, pens)
    assert all(masks is pens for masks, _ in drawn)
    assert {canvas for _, canvas in drawn} == {c for c in canvases() if 1 in c}
    for step in range(20):
        same = replace(plan, rows=0.0)
        assert same_batch(
            batch(fresh, same, step, pens), batch(fresh, same, step, pens)
        )
    assert 60 < len(drawn) < 100  # the rest are squares of four tiles


@pytest.mark.parametrize("canvas", [c for c in canvases() if 1 in c])
def test_things_of_a_row_follow_one_another(pens, canvas):
    rng, counts = np.random.default_rng(4), set()
    for _ in range(150):
        scene = draw_row(rng, pens, canvas=canvas)
        width, height = scene.image.size
        assert choose_canvas(height, width, TILE) == canvas
        boxes = sorted(
            scene.things, key=lambda thing: thing.centre[canvas[1] < canvas[0]]
        )
        axis = int(canvas[1] < canvas[0])
        for one, other in zip(boxes, boxes[1:]):
            assert one.box[2 + axis] < other.box[axis]
        for left, top, right, bottom in (thing.box for thing in boxes):
            assert 0 <= left < right <= width and 0 <= top < bottom <= height
        pixels = np.asarray(scene.image, float)
        for thing in boxes:  # its colour is in its box
            left, top, right, bottom = thing.box
            part = pixels[top:bottom, left:right]
            far = np.abs(part - COLOURS[thing.colour]).max(axis=2)
            assert (far < 40).sum() > 8
        counts.add(len(boxes))
    assert counts >= {1, 2} and (max(counts) == 4) == (max(canvas) > 1)
    assert len(draw_row(rng, pens, 2, kinds=("7",), canvas=canvas).things) <= 2


def test_training_goes_on_from_a_model():
    begun = load(device="cpu", dtype="float32").model.state_dict()
    trainer = new_trainer(
        replace(DRAWINGS, joint_steps=2, images=1, questions=1), start=SMALL
    )
    assert trainer.settings["start"] and trainer.model.training
    assert all(p.requires_grad for p in trainer.model.parameters())
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, begun[name])
    with torch.enable_grad():
        for drawn in trainer.batches(2, workers=0):
            trainer.train_step(drawn)
    moved = [
        name
        for name, value in trainer.model.state_dict().items()
        if not torch.equal(value, begun[name])
    ]
    assert len(moved) > 0.9 * len(begun)


def test_another_model_is_no_start(tmp_path):
    save_model(cases.models(0)[2], tmp_path)
    with pytest.raises(InputError, match="holds another model: expected one of the"):
        new_trainer(DRAWINGS, start=tmp_path)


def test_another_start_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 1)
    plan = replace(DRAWINGS, joint_steps=2, images=1, questions=1)

    def stop(trainer):
        raise KeyboardInterrupt

    with torch.enable_grad():
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "out", plan, stop, workers=0, start=SMALL)
        for other in (None, tmp_path / "other"):
            if other:
                model = load(device="cpu", dtype="float32").model
                with torch.no_grad():
                    model.language_model.model.norm.weight.add_(0.5)
                save_model(model, other)
            with pytest.raises(InputError, match="was begun with start "):
                train(tmp_path / "out", plan, workers=0, start=other)
        train(tmp_path / "out", plan, workers=0, start=SMALL)
    assert (
        load(tmp_path / "out", device="cpu").ask("Why?", max_new_tokens=3) is not None
    )
    assert load_masks("train").keys() == pen_masks(count=1).keys()
