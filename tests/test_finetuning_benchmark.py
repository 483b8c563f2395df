"""benchmarks/finetuning.py: both libraries do the same work, and a line says so."""

import json
import math

import pytest

import finetuning


@pytest.mark.witness
def test_a_line_of_the_smallest_size(tmp_path, capsys, monkeypatch, proof):
    known, run = {}, finetuning.run

    def fewer(library, folder, settings, **environment):
        """One process a library, which is all that the comparison needs."""
        library = "ours" if library == "ours" else "corrected"
        if library not in known:
            known[library] = run(library, folder, settings, **environment)
        return known[library]

    monkeypatch.setattr(finetuning, "run", fewer)
    out = tmp_path / "finetuning.json"
    out.write_text('[\n{"size": "11b"}\n]\n')
    arguments = ["--size", "3m", "--pairs", "1", "--steps", "2", "--out", str(out)]
    finetuning.main(arguments)
    other, line = json.loads(out.read_text())
    assert other == {"size": "11b"} and line["size"] == "3m"
    mine, theirs = line["trained"]
    assert mine == theirs > 0
    assert line["differences"]["losses"] <= finetuning.LIMITS["losses"]
    proof(
        "Lengths of the gradients of a training (relative)",
        "PEFT on transformers, corrected",
        "2 steps on 4 rows of 1 to 4 tiles",
        line["differences"]["norms"],
        finetuning.LIMITS["norms"],
    )
    loss, _, corrected = line["first_loss"]
    assert abs(loss - corrected) <= finetuning.LIMITS["losses"] * loss
    for name in ("seconds", "cpu_seconds", "bytes"):
        assert len(line[name]) == 1 and min(line[name][0]) > 0
        assert math.isfinite(line[f"{name}_ratio"])
    assert finetuning.describe(line) in capsys.readouterr().out


def test_a_new_line_takes_the_place_of_the_old(tmp_path):
    out = tmp_path / "finetuning.json"
    settings = {"size": "3m", "dtype": "float32", "device": "cpu", "rank": 8}
    settings |= {"checkpointing": False, "targets": ["self"]}
    for rank, steps in ((8, 1), (4, 1), (8, 2)):
        line = settings | {"rank": rank, "steps": steps}
        finetuning.write_line(out, line)
    lines = json.loads(out.read_text())
    assert [(one["rank"], one["steps"]) for one in lines] == [(4, 1), (8, 2)]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"trained": 4}, "Ours trains 3 parameters and theirs 4"),
        ({"losses": [1.0, 1.1]}, "The losses are"),
        ({"norms": [1.0, math.nan]}, "The norms are"),
    ],
)
def test_other_work_is_an_error(change, message):
    figures = {"trained": 3, "losses": [1.0, 1.0], "norms": [1.0, 1.0]}
    assert finetuning.check(figures, figures, exact=True) == {"losses": 0, "norms": 0}
    with pytest.raises(SystemExit, match=message):
        finetuning.check(figures, figures | change, exact=True)
