"""Predict first: the result waits until the reader has said what to expect."""

import re

import nbformat
import pytest

import conftest
import live

BODY = """<section>
<p>Before.</p>
<div class="mllama-predict"><p>What comes?</p><ul><li>One.</li><li>Two.</li></ul></div>
<p class="late">The result is in</p><div class="cell late">2</div><div class="cell late">two</div>
<p class="late">Two it was.</p>
<div class="cell">later</div><p>After.</p><section><h2>Next</h2></section></section>
"""


@pytest.fixture
def page(browser, live_site):
    address, said = live.write_page(live_site, "predict", BODY), []
    page = browser.new_page()
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address)
    page.wait_for_selector(".predict-buttons")
    yield page
    page.close()
    assert said == []


def visible(page):
    return [one.is_visible() for one in page.locator(".late").all()]


def test_the_result_waits_for_a_choice(page):
    assert visible(page) == [False] * 4
    assert (
        page.locator("text=After.").is_visible()
        and page.locator("text=later").is_visible()
    )
    page.click("text=This is what I expect")  # nothing was chosen
    assert visible(page) == [False] * 4
    page.get_by_label("Two.").check()
    page.click("text=This is what I expect")
    assert visible(page) == [True] * 4
    assert page.locator("text=You said: Two.").is_visible()
    assert page.get_by_label("One.").is_disabled()


def test_who_does_not_want_to_be_asked_is_not(page):
    page.click("text=Just show me")
    assert visible(page) == [True] * 4


def test_nothing_is_hidden_in_print(page):
    page.emulate_media(media="print")
    assert visible(page) == [True] * 4


def test_every_prediction_has_options_and_a_result():
    """In each notebook it stands before a code cell that prints or draws something."""
    found = 0
    for path in sorted((conftest.ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        for cell, after in zip(cells, cells[1:]):
            if cell.cell_type != "markdown" or "mllama-predict" not in cell.source:
                continue
            found += 1
            # Last in its cell, and without an empty line, which would end the HTML.
            (block,) = re.findall(
                r'<div class="mllama-predict"><p>(.+?)</p>\s*<ul>(.+?)</ul></div>$',
                cell.source.strip(),
                re.S,
            )
            assert "\n\n" not in "".join(block) and block[0].count("?") >= 1
            options = re.findall(r"<li>(.+?)</li>", block[1], re.S)
            assert 2 <= len(options) <= 5 and len(set(options)) == len(options)
            assert after.cell_type == "code" and after.outputs, (
                f"{path.name}: {cell.id}"
            )
    assert found > 0
