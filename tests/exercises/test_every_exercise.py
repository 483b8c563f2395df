"""What holds for every exercise: its solution passes, and wrong answers of many kinds don't.

`wrong_NAME.py` beside this file has, for the exercises of a chapter, wrong answers that people
give, and the right ones where they are checked in the page as well.
"""

import re
import sys
from collections import Counter
from importlib import import_module
from pathlib import Path

import nbformat
import pytest

import conftest
import live
from exercises import CHECKS, check

NOTEBOOKS = sorted((conftest.ROOT / "notebooks").glob("[0-9]*.ipynb"))
CALL = re.compile(r'^check\(\s*"([\w-]+)"', re.M)
STATED = re.compile(r"```\{exercise\}.*\n:label: (\S+)")
PLACE = re.compile(
    r'<div class="mllama-exercise" data-chapter="(\w+)" data-exercise="([\w-]+)">', re.S
)

sys.path.insert(0, str(Path(__file__).parent))
CHAPTERS = [path.stem[3:] for path in NOTEBOOKS]
ANSWERS = [import_module(f"wrong_{name}") for name in CHAPTERS]
WRONG = {label: w for module in ANSWERS for label, w in module.WRONG.items()}
RIGHT = {label: r for module in ANSWERS for label, r in module.RIGHT.items()}


def cells(path, kind):
    return [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == kind]


def printed(cell):
    """What a cell shows as text."""
    parts = [
        o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs
    ]
    return "".join(parts).strip()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_chapter_asks_and_its_solutions_are_right(path):
    """Every check stands twice: below the place for the answer, and below the solution."""
    found = {}
    for cell in cells(path, "code"):
        for label in CALL.findall(cell.source):
            found.setdefault(label, []).append(printed(cell))
    assert len(found) >= 4
    assert all(o == ["not answered yet", "right"] for o in found.values()), found
    text = "\n".join(c.source for c in cells(path, "markdown"))
    assert set(found) <= set(STATED.findall(text))
    for label in found:
        assert f"```{{solution-start}} {label}" in text
    assert text.count(":class: tip dropdown") + text.count("Hint") >= len(found)


def test_every_check_belongs_to_a_chapter():
    asked = Counter(
        label
        for p in NOTEBOOKS
        for c in cells(p, "code")
        for label in CALL.findall(c.source)
    )
    assert asked == dict.fromkeys(CHECKS, 2)


@pytest.mark.parametrize("label", CHECKS)
def test_wrong_answers_are_not_right(label):
    answers = WRONG[label]
    assert len(answers) >= 3
    for answer in answers:
        verdict = check(label, *(answer if isinstance(answer, tuple) else (answer,)))
        assert not verdict.right and verdict.text.startswith("not yet: "), answer


def placed():
    """(chapter, label) of every exercise that is checked in the page."""
    return [
        place
        for path in NOTEBOOKS
        for cell in cells(path, "markdown")
        for place in PLACE.findall(cell.source)
    ]


def test_a_page_has_what_is_checked_in_it():
    assert sorted(label for _, label in placed()) == sorted(RIGHT)
    for path in NOTEBOOKS:
        labels = [
            label
            for c in cells(path, "markdown")
            for _, label in PLACE.findall(c.source)
        ]
        assert len(labels) >= 1, f"{path.stem} has nothing to answer in the page"


def test_the_page_says_what_the_notebook_says(browser, live_site):
    body = "".join(
        f'<div class="mllama-exercise" data-chapter="{chapter}" data-exercise="{label}"></div>'
        for chapter, label in placed()
    )
    page, said = browser.new_page(), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(live.write_page(live_site, "exercises", body))
    page.wait_for_function("document.querySelectorAll('.exercise-said').length > 0")
    for label, right in RIGHT.items():
        for answer in [right, *WRONG[label]]:
            told = page.evaluate(
                "([l, a]) => mllama.checkAnswer(l, a)", [label, answer]
            )
            assert told.startswith("right" if answer == right else "not yet: "), label
            assert check(label, answer).right == (answer == right), label
    page.close()
    assert said == []
