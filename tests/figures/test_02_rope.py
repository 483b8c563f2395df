"""The figures of chapter 2 against the package."""

import numpy as np
import pytest
import torch

from mllama_lite.rope import RopeScaling, apply_rope, rope_cos_sin, rope_frequencies


@pytest.mark.parametrize("m, n", [(12, 9), (0, 60), (37, 37)])
def test_rope_clock(figure, m, n):
    clock = figure("rope_clock")
    clock.set("Query at position", m)
    clock.set("Key at position", n)
    frequencies = rope_frequencies(8, 10000.0)
    arrow = torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0])[None, None, None]
    query, key = (
        apply_rope(arrow, *rope_cos_sin(frequencies, torch.tensor([position])))[0, 0, 0]
        for position in (m, n)
    )
    want = (query * key).unflatten(0, (2, 4)).sum(0).tolist()
    assert clock.values() == pytest.approx(want, abs=1e-5)
    assert f"{m - n} apart" in clock.words()


def test_rope_clock_locked(figure):
    clock = figure("rope_clock")
    before = clock.values()
    clock.set("Lock the distance", True)
    clock.set("Key at position", 40)
    assert "Query (blue) at 43, key (orange) at 40, 3 apart" in clock.words()
    assert clock.values() == pytest.approx(before, abs=1e-4)
    clock.set("Key at position", 60)  # the query's end: both stop
    assert "3 apart" in clock.words()


def scaled(way, factor):
    """What the package makes of the figure's controls."""
    if way == "no pair":
        return rope_frequencies(128)
    if way == "every pair":  # limits that no pair reaches
        return rope_frequencies(128, scaling=RopeScaling(factor, 1e9, 2e9))
    return rope_frequencies(128, scaling=RopeScaling(factor))


@pytest.mark.parametrize(
    "way, factor, context",
    [
        ("no pair", 8, 131072),
        ("no pair", 8, 8192),
        ("the slow pairs", 8, 131072),
        ("the slow pairs", 8, 65536),
        ("the slow pairs", 15, 131072),
        ("the slow pairs", 16, 131072),
        ("the slow pairs", 3, 24576),
        ("every pair", 8, 73728),
        ("every pair", 32, 131072),
    ],
)
def test_rope_stretch(figure, way, factor, context):
    stretch = figure("rope_stretch")
    stretch.set("Context", context)
    stretch.set("Divide the speed of", way)
    stretch.set("by a factor of", factor)
    got = stretch.values()
    want = scaled(way, factor)
    assert got["speed"] == pytest.approx(want.tolist(), rel=2e-6)
    turns = rope_frequencies(128) / (2 * torch.pi)
    assert got["trained"] == pytest.approx((8192 * turns).tolist(), rel=2e-6)
    # Position after position: is any angle further from all that were met than two steps?
    new = 0
    for i in range(64):
        speed = rope_frequencies(128)[i].double().item()
        met = np.sort(np.arange(8192) * speed % (2 * np.pi))
        met = np.concatenate([met, [met[0] + 2 * np.pi]])
        angles = np.arange(context) * want[i].double().item() % (2 * np.pi)
        place = np.clip(np.searchsorted(met, angles), 1, len(met) - 1)
        gap = np.minimum(abs(met[place] - angles), abs(angles - met[place - 1]))
        if gap.max() > 2 * speed:
            new += 1
            assert got["fresh"][i] > 0, i
            # The new part of the circle, in bins that no trained angle falls into.
            bins = np.linspace(0, 2 * np.pi, 513)
            empty = np.histogram(met[:-1], bins)[0] == 0
            share = (empty & (np.histogram(angles, bins)[0] > 0)).mean()
            assert got["fresh"][i] == pytest.approx(share, abs=3 / 512), i
    assert got["count"] == new
    assert f"{new or 'none'} of the 64 pairs" in stretch.words()


def test_rope_stretch_says_what_a_position_is_worth(figure):
    stretch = figure("rope_stretch")
    assert "turns the fastest pair by 57.3°" in stretch.words()  # one radian
    stretch.set("Divide the speed of", "every pair")
    assert "turns the fastest pair by 7.2°" in stretch.words()
    stretch.set("Divide the speed of", "the slow pairs")
    assert "turns the fastest pair by 57.3°" in stretch.words()
    stretch.root.locator("[data-pair='35']").click()  # the chapter's example
    assert stretch.control("Pair").input_value() == "35"
    words = stretch.words()
    assert "Pair 35 made 0.997 turns" in words and "makes 1.99 now" in words
    stretch.set("Divide the speed of", "no pair")
    assert "makes 15.9 now" in stretch.words()
