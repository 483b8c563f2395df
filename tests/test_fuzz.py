"""Damaged files for every reader of a stranger's file; `make fuzz` draws far more of them."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

import conftest
import fuzz

ROOT = Path(__file__).resolve().parent.parent


def test_nothing_but_input_errors():
    """300 damaged files for each reader, and those that were findings once."""
    command = [sys.executable, ROOT / "tools" / "fuzz.py", "--draw", "300"]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    names = [line.split()[0] for line in ended.stdout.splitlines()]
    assert names == list(fuzz.targets()) and len(names) == 12


def test_the_page_has_what_the_long_run_counted():
    figures = json.loads(conftest.FUZZ.read_text(encoding="utf-8"))
    assert list(figures) == list(fuzz.targets())
    assert all(figure["findings"] == 0 for figure in figures.values())
    assert sum(figure["inputs"] for figure in figures.values()) >= 9_999_900
    assert conftest.fuzz_text(figures) in conftest.PAGE.read_text(encoding="utf-8")


def wrong(data):
    if b"7" in data:
        raise KeyError("seven")
    if b"9" in data:
        raise fuzz.InputError("There is a 9: expected none; remove it.")


@pytest.mark.parametrize("data, finds", [(b"6", False), (b"9", False), (b"7", True)])
def test_a_finding_is_kept_and_raised(data, finds, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "CORPUS", tmp_path)
    target = fuzz.Target(wrong, [b"[1]"], fuzz.mutate_json)
    if finds:
        with pytest.raises(KeyError, match="seven"):
            fuzz.check("wrong", target, data)
        assert fuzz.kept("wrong") == [data]
    else:
        fuzz.check("wrong", target, data)
        assert fuzz.kept("wrong") == []


def test_good_input_is_read():
    """Each target's seeds are answers, not errors: the mutations start from good files."""
    for name, target in fuzz.targets().items():
        for seed in target.seeds:
            try:
                target.read(seed)
            except fuzz.InputError as error:
                pytest.fail(f"{name}: {error}")


def test_inputs_are_the_same_for_a_seed_and_mostly_not_the_seed():
    for name, target in fuzz.targets().items():
        one, two = (list(fuzz.drawn(target, [], 50, seed=3)) for _ in range(2))
        assert one == two, name
        changed = [data for data in one if data not in target.seeds]
        assert len(set(changed)) > 25, name


def test_mutations_reach_deep():
    """JSON stays JSON in most mutations, so that what it says is tested, not its commas."""
    rng, whole = random.Random(0), 0
    for _ in range(200):
        try:
            fuzz.json.loads(
                fuzz.mutate_json(rng, b'{"a": [1, 2, {"b": "c"}], "d": 0.5}')
            )
            whole += 1
        except ValueError:
            pass
    assert whole > 120
