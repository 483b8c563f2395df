"""The figure of chapter 19 against the package."""

import json
from pathlib import Path

import pytest

from mllama_lite.guard_probes import Probe, rates
from mllama_lite.small_model.evaluation import interval

MEASURED = Path(__file__).resolve().parents[2] / "notebooks" / "measured" / "guard.json"
SETS = {
    "pairs by hand": "pairs",
    "another source, twins by rule": "test",
    "inside jailbreaks": "wrapped",
}


@pytest.mark.parametrize("label", SETS)
def test_guard_threshold(figure, label):
    rows = json.loads(MEASURED.read_text(encoding="utf-8"))["scores"][SETS[label]]
    probes = [Probe("", bool(unsafe), label) for unsafe, _ in rows]
    shown = figure("guard_threshold")
    shown.set("Probes", label)
    for threshold, times in (
        (0.0, 1),
        (0.02, 1),
        (0.5, 1),
        (0.5, 20),
        (0.86, 3),
        (1, 1),
    ):
        shown.set("Threshold", threshold)
        shown.set("So many times the probes", times)
        found = rates(probes, [score for _, score in rows], threshold)
        values = shown.values()
        for name, (k, n) in (
            ("caught", found.caught),
            ("refused", found.falsely_refused),
        ):
            if threshold:  # a score of 0 to four places is in the first fiftieth
                assert values[name]["count"] == [k * times, n * times]
            k, n = values[name]["count"]
            assert values[name]["interval"] == pytest.approx(interval(k, n))


def test_guard_threshold_says_whether_the_intervals_meet(figure):
    shown = figure("guard_threshold")
    assert "The two intervals overlap" in shown.words()
    shown.set("So many times the probes", 20)
    assert "do not meet" in shown.words()
    shown.set("Threshold", 1)
    assert "0% (0% to" in shown.words()
