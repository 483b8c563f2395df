"""The pages in Firefox too: the model answers as the package does, all that moves is mounted."""

import json
import sys
import warnings
from pathlib import Path

import pytest

import firefox
import live
from mllama_lite import load
from mllama_lite.checkpoints.hub import find_folder

sys.path.insert(0, str(Path(__file__).parent / "exercises"))
from code_answers import ANSWERS, wrong_code

PICTURES = find_folder() / "pictures"
NAMES = sorted(path.stem for path in (live.LIVE / "figures").glob("*.js"))


@pytest.fixture(scope="module")
def tab():
    program = firefox.found()
    if program is None:
        message = f"NO FIREFOX: no page is tested in it; install one of {firefox.NAMES}"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    opened = firefox.Firefox(program)
    yield opened
    opened.close()


def test_the_live_page_answers_as_the_package(tab, live_site):
    tab.said.clear()
    tab.open(live.write_page(live_site, "firefox", '<div class="mllama-live"></div>'))
    tab.wait_for("document.querySelector('[data-live=ask]')")
    vlm = load(dtype="float32", device="cpu")
    for name, question in (
        ("digits", "Read the digits from left to right."),
        ("mixed", "What is in the picture?"),
        ("tall", "How many digits are there?"),
        ("one", "Which digit is this?"),
    ):
        told = tab.evaluate(
            f"""(async () => {{
            const live = document.querySelector(".mllama-live").live;
            await live.ready();
            const image = new Image();
            image.src = mllama.packed.pictures[{name!r}];
            await image.decode();
            let text = "";
            await live.write(image, {question!r}, {{}}, ({{ piece }}) => {{ text += piece; }});
            return text; }})()"""
        )
        assert told == vlm.ask(question, PICTURES / f"{name}.png")
    assert tab.said == []


def test_every_figure_is_mounted_and_says_what_it_shows(tab, live_site):
    tab.said.clear()
    body = "".join(
        f'<div class="mllama-figure" data-figure="{n}"></div>' for n in NAMES
    )
    tab.open(live.write_page(live_site, "firefox_figures", body))
    tab.wait_for(
        f"document.querySelectorAll('.mllama-figure[data-ready]').length === {len(NAMES)}"
    )
    words = tab.evaluate(
        "[...document.querySelectorAll('.figure-words')].map(one => one.textContent)"
    )
    assert all(len(text.split()) > 5 for text in words)
    assert tab.said == []


def test_figures_move_by_their_controls(tab, live_site):
    """What the first range of each says changes, or what is drawn does."""
    state = "[...document.querySelectorAll('.mllama-figure')].map(f => f.innerHTML)"
    before = tab.evaluate(state)
    tab.evaluate(
        """[...document.querySelectorAll(".mllama-figure")].map(figure => {
        const input = figure.querySelector("input[type=range]");
        if (!input) return;
        input.value = input.value === input.max ? input.min : input.max;
        input.dispatchEvent(new Event("input", { bubbles: true })); }).length"""
    )
    with_range = tab.evaluate(
        "[...document.querySelectorAll('.mllama-figure')].map(f => "
        "f.querySelector('input[type=range]') !== null)"
    )
    after = tab.evaluate(state)
    still = [n for n, r, a, b in zip(NAMES, with_range, before, after) if r and a == b]
    assert sum(with_range) > 10 and still == []
    assert tab.said == []


def test_code_is_checked_as_in_node(tab, live_site):
    tab.said.clear()
    place = '<div class="mllama-exercise" data-code data-chapter="{}" data-exercise="{}"></div>'
    body = "".join(place.format(chapter, n) for n, (chapter, *_) in ANSWERS.items())
    tab.open(live.write_page(live_site, "firefox_code", body))
    tab.wait_for(f"document.querySelectorAll('textarea').length === {len(ANSWERS)}")
    tab.evaluate("document.querySelector('.mllama-exercise button').click()")
    tab.wait_for("document.querySelector('.exercise-said').textContent")
    for label, (_, right, _) in ANSWERS.items():
        for code, verdict in ((right, "right"), (next(wrong_code(label)), "not yet: ")):
            told = tab.evaluate(f"mllama.checkAnswer({label!r}, {json.dumps(code)})")
            assert told.startswith(verdict), label
    typed = tab.evaluate(
        """(() => {
        const area = document.querySelector("textarea");
        area.value = "def f():";
        area.setSelectionRange(8, 8);
        area.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
        return area.value; })()"""
    )
    assert typed == "def f():\n    "
    assert tab.said == []
