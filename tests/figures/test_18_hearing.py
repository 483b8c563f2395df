"""The figure of chapter 18 against the package."""

import itertools

import pytest
import torch

from mllama_lite.hearing import mel


def test_mel_bands(figure):
    shown = figure("mel_bands")
    for tone, bands in itertools.product((40, 440, 1000, 3520, 7960), (10, 40, 80)):
        shown.set("Tone", tone)
        shown.set("Bands", bands)
        want = mel.mel_filters(bands)[:, tone // 40]  # a bin of the transform is 40 Hz
        assert shown.values() == pytest.approx(want.tolist(), abs=1e-12)
        hears = want.nonzero()[:, 0].tolist()
        assert all(f" {band} " in shown.words() for band in hears) or not hears
    assert "Bands 79 hear" in shown.words() or "Band 79 hears" in shown.words()


def test_mel_bands_of_even_steps(figure):
    shown = figure("mel_bands")
    words = shown.words()
    shown.set("Even steps in Hz instead of mel", True)
    assert shown.words() != words
    shown.set("Bands", 10)
    shown.set("Tone", 2000)
    steps = torch.linspace(0, 8000, 12)
    want = [
        max(0.0, min((2000 - a) / (b - a), (c - 2000) / (c - b))) * 2 / (c - a)
        for a, b, c in zip(*(steps[i : i + 10].tolist() for i in range(3)))
    ]
    assert shown.values() == pytest.approx(want, abs=1e-9)
    assert "1 of 10 bands have their middle at 1,000 Hz or below" in shown.words()
