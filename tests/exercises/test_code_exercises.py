"""Exercises that are written in the page: its checks say what those of the notebook say."""

import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import live
from exercises import CHECKS, check
from little_python import LittlePython
from mllama_lite.small_model.evaluation import interval

sys.path.insert(0, str(Path(__file__).parent))
from code_answers import ANSWERS, SOLVED, wrong_code
from test_every_exercise import NOTEBOOKS, cells

PLACE = re.compile(
    r'<div class="mllama-exercise" data-code data-chapter="(\w+)" data-exercise="([\w-]+)">'
)
CALL = re.compile(r'\bcheck\("[\w-]+", (.*)\)\n?')


@pytest.fixture(scope="module")
def page():
    page = LittlePython()
    yield page
    page.close()


def cell(label, which):
    """The source of an exercise's cell, "try" or "solved"."""
    (source,) = (
        c.source
        for path in NOTEBOOKS
        for c in cells(path, "code")
        if c.id == f"{label}-{which}"
    )
    return source


def told_by_page(page, label, codes):
    chapter = ANSWERS[label][0]
    return page("check", chapter=chapter, answers=[[label, code] for code in codes])


def told_by_notebook(label, code):
    """What the notebook's check says of what this code defines."""
    names = {"torch": torch, "np": np, "math": math, "interval": interval}
    exec(code, names)
    wanted = CALL.search(cell(label, "solved"))[1].split(", ")
    return check(label, *(names[name] for name in wanted)).text


def test_the_chapters_have_a_place_for_the_code():
    placed = [
        (chapter, label)
        for path in NOTEBOOKS
        for c in cells(path, "markdown")
        for chapter, label in PLACE.findall(c.source)
    ]
    assert placed == [(chapter, label) for label, (chapter, *_) in ANSWERS.items()]
    assert len({chapter for chapter, _ in placed}) >= 10


@pytest.mark.parametrize("label", ANSWERS)
def test_the_right_code_is_right_in_the_page_too(page, label):
    """Again and again, for its numbers are drawn anew each time."""
    right = [ANSWERS[label][1]]
    if label in SOLVED:
        right.append(CALL.sub("", cell(label, "solved")))
    assert told_by_page(page, label, 3 * right) == ["right"] * 3 * len(right)
    assert [told_by_notebook(label, code) for code in right] == ["right"] * len(right)


@pytest.mark.parametrize("label", ANSWERS)
def test_wrong_code_is_wrong_in_both(page, label):
    wrong = list(wrong_code(label))
    assert len(wrong) >= 3
    for code, told in zip(wrong, told_by_page(page, label, wrong), strict=True):
        assert told.startswith("not yet: "), code
        assert told_by_notebook(label, code).startswith("not yet: "), code


@pytest.mark.parametrize("label", ANSWERS)
def test_the_place_as_the_book_left_it_is_not_answered(page, label):
    code = CALL.sub("", cell(label, "try")).replace("from exercises import check", "")
    assert told_by_page(page, label, [code]) == ["not answered yet"]
    (told,) = told_by_page(page, label, ["x = 1"])
    assert told.startswith("not yet: nothing is called ")


def test_no_check_tells_what_is_right():
    """What a check of the page says stands in its text: no code of an answer does."""
    for label, (chapter, right, _) in ANSWERS.items():
        text = (live.LIVE / "exercises" / f"{chapter}_code.js").read_text(
            encoding="utf-8"
        )
        (check_text,) = re.findall(
            rf'codeExercise\("{label}".*?^  }}', text, re.M | re.S
        )
        assert "expect(" in check_text
        lines = {line.strip() for line in right.splitlines() if len(line.strip()) > 12}
        assert not any(line in check_text for line in lines), label
        assert label in CHECKS


# ---- In a browser ---------------------------------------------------------------------------

BOX = """<div class="mllama-exercise" data-code data-chapter="{chapter}"
data-exercise="{label}"><p>Write it here.</p></div>
<div class="cell"><div class="cell_input"><pre>{code}</pre></div></div>"""


def opened(browser, live_site, label, width):
    context = browser.new_context(viewport={"width": width, "height": 800})
    page, said = context.new_page(), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    body = BOX.format(chapter=ANSWERS[label][0], label=label, code=cell(label, "try"))
    page.goto(live.write_page(live_site, f"code-{label}", body))
    page.wait_for_selector("textarea")
    # What checks it comes with the first check.
    assert not page.evaluate("'python' in mllama")
    return page, said


def verdict(page):
    """What the page says, once the check has been loaded and has run."""
    said = page.locator(".exercise-said:not(:empty)")
    said.wait_for()
    return said.inner_text()


@pytest.mark.parametrize("width", [1280, 390])
def test_code_is_typed_checked_and_kept(browser, live_site, width):
    """By keyboard alone: a wrong answer, then a right one; a reload keeps it."""
    page, said = opened(browser, live_site, "projector-for-blocks", width)
    area = page.get_by_label("Your code")
    begun = area.input_value()
    assert begun.startswith("def for_blocks(weight, width):\n") and "check" not in begun
    live_region = page.locator(".exercise-said").get_attribute("aria-live")
    assert live_region == "polite"

    page.keyboard.press("Tab")
    assert area.evaluate("a => a === document.activeElement")
    page.keyboard.press("Control+Enter")
    assert verdict(page) == "not answered yet"

    page.keyboard.press("Control+A")
    for line in (
        "def for_blocks(weight, width):",
        "kept = weight.shape[1] // width - 1",  # Enter after a colon indents
        "states = [weight[:, width + j * width : 2 * width + j * width] for j in range(kept)]",
        "return torch.cat([weight[:, :width], *states], dim=1)",
    ):
        page.keyboard.type(line)
        page.keyboard.press("Enter")
    assert "\n    states = " in area.input_value()
    page.keyboard.press("Tab")  # moves on, to the button
    assert page.evaluate("document.activeElement.textContent") == "Check"
    page.keyboard.press("Enter")
    assert re.search(r"not yet: with 5 kept states of 4 .* off", verdict(page))

    wrong = area.input_value()
    cut = "weight[:, width + j * width : 2 * width + j * width]"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Control+A")
    page.keyboard.insert_text(wrong.replace(cut, "weight[:, width + j :: kept]"))
    page.keyboard.press("Control+Enter")
    assert verdict(page) == "right"
    right = area.input_value()

    page.reload()
    assert page.get_by_label("Your code").input_value() == right
    page.get_by_role("button", name="Start again").click()
    assert page.get_by_label("Your code").input_value() == begun
    page.reload()
    assert page.get_by_label("Your code").input_value() == begun
    box = page.locator(".mllama-exercise").bounding_box()
    assert box["x"] + box["width"] <= width
    assert area.bounding_box()["width"] > 0.8 * width and said == []
    page.context.close()


def test_a_mistake_is_told_with_its_line_and_what_was_printed(browser, live_site):
    page, said = opened(browser, live_site, "one-head", 1280)
    area = page.get_by_label("Your code")
    area.fill("def one_head(x, *w):\n    return x")
    page.get_by_role("button", name="Check").click()
    page.wait_for_selector("text=line 1: the page knows only a small part of Python")
    area.fill("def one_head(x, a, b, c, d):\n    print(x.shape, 1.0)\n    return x @ y")
    page.get_by_role("button", name="Check").click()
    page.wait_for_selector("text=not yet: line 3: NameError: name 'y' is not defined")
    assert page.locator(".exercise-printed").inner_text().strip() == "(2, 5, 8) 1.0"
    area.fill("def one_head(x, a, b, c, d):\n    while True:\n        pass")
    page.get_by_role("button", name="Check").click()
    page.wait_for_selector("text=does every loop end?")
    area.fill("")
    page.get_by_role("button", name="Four spaces").click()
    assert area.input_value() == "    "
    page.keyboard.press("Control+Z")  # what the button typed can be undone
    assert area.input_value() == ""
    assert said == []
    page.context.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_a_box(browser, live_site, theme):
    axe = pytest.importorskip("axe_playwright_python.base").AXE_SCRIPT
    page, _ = opened(browser, live_site, "one-head", 390)
    page.evaluate(axe)
    page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    page.get_by_role("button", name="Check").click()
    page.get_by_text("What the page knows of Python").click()
    page.wait_for_selector("text=Of np and torch")
    assert verdict(page) == "not answered yet"
    found = page.evaluate("axe.run('.mllama-exercise')")["violations"]
    assert [v["id"] for v in found] == []
    page.context.close()
