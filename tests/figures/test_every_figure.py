"""What holds for every figure that moves: it works, by keys too, and says what it shows."""

import re

import nbformat
import pytest

import conftest
import live
import stills

NOTEBOOKS = sorted((conftest.ROOT / "notebooks").glob("*.ipynb"))
NAMES = sorted(path.stem for path in (live.LIVE / "figures").glob("*.js"))
PLACE = re.compile(r'<div class="mllama-figure" data-figure="(\w+)">(.*?)</div>', re.S)


def placed():
    """Name of each figure in a notebook: its notebook and what stands there without scripts."""
    found = {}
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "markdown":
                for name, still in PLACE.findall(cell.source):
                    assert name not in found, f"{name} stands twice"
                    found[name] = path.stem, still
    return found


def test_every_figure_stands_in_a_chapter_and_tells_without_scripts():
    found = placed()
    assert sorted(found) == NAMES
    for name, (_, still) in found.items():
        text = re.sub(r"<[^>]+>", "", still)
        assert len(text.split()) > 20, f"{name} says too little where scripts are off"


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_moves_by_keys_and_fits_a_phone(figure, name):
    shown = figure(name)
    assert len(shown.words().split()) > 5
    told = {shown.words()}
    controls = shown.root.locator("input, select")
    assert controls.count() > 0
    for i in range(controls.count()):
        control = controls.nth(i)
        kind = control.evaluate("c => c.type")
        if kind == "text":
            continue
        control.focus()
        key = " " if kind == "checkbox" else "ArrowRight"
        if kind == "select-one":
            control.select_option(index=1)
        else:
            control.press(key)
        told.add(shown.words())
        assert control.evaluate(
            "c => Boolean(c.labels.length && c.labels[0].textContent)"
        )
    assert len(told) > 1 or shown.root.locator("button").count()
    for drawing in shown.root.locator("svg[role=img], canvas[role=img]").all():
        assert drawing.get_attribute("aria-label")
    shown.page.set_viewport_size({"width": 390, "height": 900})
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("name", NAMES)
def test_a_still_picture_is_what_the_figure_draws(figure, name):
    path = stills.STILLS / f"{name}.svg"
    stored = path.read_text(encoding="utf-8") if path.is_file() else None
    assert stills.drawn(figure(name).page) == stored, "python tools/stills.py"
