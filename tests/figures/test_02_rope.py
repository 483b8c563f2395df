"""The figures of chapter 2 against the package."""

import pytest
import torch

from mllama_lite.rope import apply_rope, rope_cos_sin, rope_frequencies


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
