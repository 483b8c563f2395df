"""The built book in a browser: axe finds nothing, the console is silent, focus shows.

Needs _build/html as `make book` leaves it, newer than what it is made of.
"""

import os
import re
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from urllib.parse import quote, unquote

import nbformat
import pypdf
import pytest

ROOT = Path(__file__).resolve().parent.parent
SITE = ROOT / "_build" / "html"
# As in the Makefile, without what is made while a book is built or used.
SOURCES = (
    "_config.yml _toc.yml book notebooks mllama_lite tools/live.py tools/bundle.py "
    "tools/pages.py"
)


# Pages that the table of contents names, and one of each kind that Sphinx adds.
PAGES = [
    "book/intro",
    *(f"book/{path.stem}" for path in sorted((ROOT / "book").glob("*.md"))),
    *(
        f"notebooks/{path.stem}"
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
    ),
    *(
        "genindex",
        "py-modindex",
        "search",
        "_modules/index",
        "_modules/mllama_lite/rope",
    ),
]


def newest_source():
    roots = [ROOT / name for name in SOURCES.split()]
    paths = {p for root in roots for p in (root, *root.rglob("*")) if p.is_file()}
    made = [p for p in paths if {"packed", "__pycache__"} & {*p.parts}]
    hidden = [p for p in paths if "/." in str(p.relative_to(ROOT))]
    return max(p.stat().st_mtime for p in paths - {*made, *hidden})


@pytest.fixture(scope="module")
def site():
    page = SITE / "index.html"
    if not page.is_file() or os.path.getmtime(page) < newest_source():
        message = "NO BUILT BOOK: no page is tested, or only old ones; run `make book`"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    return SITE


@pytest.fixture
def page(browser):
    """A page that fails the test if a script fails or complains."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, said = context.new_page(), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "console",
        lambda message: (
            message.type in ("error", "warning") and said.append(message.text)
        ),
    )
    yield page
    context.close()
    assert said == []


def opened(page, site, name):
    page.goto((site / f"{name}.html").as_uri())
    page.wait_for_function(
        "document.querySelectorAll('.math:not(:has(.katex))').length == 0"
    )
    return page


# Leaves two elements of each kind that hold text, and what is around them; a kind is the tags and
# classes of an element and of the two around it. The API page has fifteen thousand elements, and
# axe takes a minute for their colours.
TWO_OF_A_KIND = """() => {
  const kinds = {}, kind = e => e ? `${e.tagName} ${e.getAttribute("class")} ${kind.up-- > 0
    ? kind(e.parentElement) : ""}` : "";
  const kept = [...document.body.querySelectorAll("*")].filter(e => {
    if (![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) return false;
    if (!e.checkVisibility()) return false;
    kind.up = 2;
    const name = kind(e);
    kinds[name] = (kinds[name] ?? 0) + 1;
    return kinds[name] <= 2;
  });
  const around = new Set();
  for (const e of kept) for (let up = e; up; up = up.parentElement) around.add(up);
  for (const e of document.body.querySelectorAll("*")) if (!around.has(e)) e.remove();
  return kept.length;
}"""

# A span with a class alone, as highlighted code has thousands, is nothing but its text to any rule
# that asks for no colour.
NO_COLOURED_SPANS = """() => {
  for (const span of document.querySelectorAll("pre span, .sig span"))
    if (span.getAttributeNames().every(name => name === "class"))
      span.replaceWith(...span.childNodes);
  document.body.normalize();
}"""


def violations(page, options):
    # Style sheets are not fetched a second time, which a browser refuses from a folder.
    options = {"resultTypes": ["violations"], "preload": False, **options}
    found = page.evaluate("options => axe.run(document, options)", options)
    return [
        (v["id"], v["impact"], [node["target"] for node in v["nodes"]][:5])
        for v in found["violations"]
    ]


@pytest.mark.parametrize("name", dict.fromkeys(PAGES))
def test_axe_finds_nothing_in_either_theme(page, site, name):
    axe = pytest.importorskip("axe_playwright_python.base").AXE_SCRIPT
    page = opened(page, site, name)
    page.add_style_tag(content="* { transition: none !important }")
    page.evaluate(axe)
    assert page.locator(".katex-error").count() == 0
    assert page.evaluate(TWO_OF_A_KIND) > 5
    for theme in ("light", "dark"):  # only colours differ
        page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
        assert violations(page, {"runOnly": ["color-contrast"]}) == [], theme
    page = opened(page, site, name)
    page.evaluate(axe)
    page.evaluate(NO_COLOURED_SPANS)
    assert violations(page, {"rules": {"color-contrast": {"enabled": False}}}) == []


@pytest.mark.parametrize("width", [1280, 390])
def test_an_exercise_is_written_in_its_chapter(page, site, width):
    """By keyboard: a wrong answer, then a right one, in a small part of Python."""
    page.set_viewport_size({"width": width, "height": 800})
    page = opened(page, site, "notebooks/07_global_vision")
    box = page.locator("[data-exercise=projector-for-blocks]")
    area, said = (
        box.get_by_label("Your code"),
        box.locator(".exercise-said:not(:empty)"),
    )
    assert area.input_value().startswith("def for_blocks(weight, width):\n")
    area.focus()
    for step, verdict in (("::2", "not yet: "), ("::kept", "right")):
        page.keyboard.press("Control+A")
        for line in (
            "def for_blocks(weight, width):",
            "kept = weight.shape[1] // width - 1",
            f"states = [weight[:, width + j {step}] for j in range(kept)]",
            "return torch.cat([weight[:, :width], *states], dim=1)",
        ):
            page.keyboard.type(line)
            page.keyboard.press("Enter")
        page.keyboard.press("Control+Enter")
        said.wait_for()
        assert said.inner_text().startswith(verdict)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    style = area.evaluate("a => getComputedStyle(a).outlineStyle")
    assert style == "solid"  # it shows that it has the keyboard


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_has_the_keyboard_shows_it(page, site, theme):
    """From Tab to Tab through the page's head, sidebar and first links."""
    page = opened(page, site, "notebooks/03_attention")
    page.evaluate("theme => document.documentElement.dataset.theme = theme", theme)
    seen = set()
    for _ in range(45):
        page.keyboard.press("Tab")
        name, style, width = page.evaluate(
            """() => { const a = document.activeElement, s = getComputedStyle(a);
            return [a.getAttribute("aria-label") || a.title || a.innerText,
                    s.outlineStyle, parseFloat(s.outlineWidth)]; }"""
        )
        assert style == "solid" and width >= 2, (name, style, width)
        seen.add(name)
    assert {"Search", "Download this page"} <= seen


def test_print_shows_whole_lines_and_open_solutions(page, site):
    page = opened(page, site, "notebooks/02_rope")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("article details:not([open])").count() == 0
    page.emulate_media(media="print")
    cut = page.evaluate(
        """() => [...document.querySelectorAll(".bd-article pre")].filter(
        p => p.scrollWidth > p.clientWidth + 1).map(p => p.innerText.slice(0, 60))"""
    )
    assert cut == []


def test_on_paper_everything_is_open_and_links_stay_within(site, tmp_path):
    out, names = tmp_path / "two.pdf", ["notebooks/03_attention", "book/glossary"]
    tool = [sys.executable, str(ROOT / "tools" / "pdf.py"), str(site), str(out)]
    done = subprocess.run([*tool, "--only", *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    paper = pypdf.PdfReader(out)
    first = [paper.get_destination_page_number(one) for one in flat(paper.outline)]
    text = "".join(re.sub(r"\s+", "", sheet.extract_text()) for sheet in paper.pages)
    notebook = nbformat.read(ROOT / f"{names[0]}.ipynb", 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for line in cell.source.splitlines():
                code = re.sub(r"\s+", "", line)
                assert code in text or line.startswith(("#|", "%")), line
    # Of the two pages' links to one another, those of the chapter lead to the glossary.
    assert len(first) == 2 and first[0] == 0
    within = [
        paper.pages.index(link["/Dest"][0].get_object())
        for sheet in paper.pages[: first[1]]
        for link in map(lambda one: one.get_object(), sheet.get("/Annots", []))
        if "/Dest" in link and isinstance(link["/Dest"], list)
    ]
    assert first[1] in within
    hosts = [
        link.get_object()["/A"]["/URI"]
        for sheet in paper.pages
        for link in sheet.get("/Annots", [])
        if "/URI" in link.get_object().get("/A", {})
    ]
    assert hosts and all(host.startswith("https://") for host in hosts)


def flat(outline):
    """The destinations of an outline, and of what is below them."""
    for one in outline:
        yield from flat(one) if isinstance(one, list) else [one]


def test_without_scripts_a_figure_is_a_picture_and_a_text(browser, site):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((site / "notebooks/02_rope.html").as_uri())
    figure = page.locator("[data-figure=rope_clock]")
    figure.scroll_into_view_if_needed()
    picture = figure.locator("img")
    assert picture.bounding_box()["width"] > 100
    assert len(figure.inner_text().split()) > 20
    context.close()


def test_the_map_leads_to_every_chapter(page, site):
    page = opened(page, site, "notebooks/03_attention")
    links = page.locator("svg[aria-label='Map of the model'] a").evaluate_all(
        "links => links.map(link => link.href.baseVal)"
    )
    chapters = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert sorted(links) == [f"{path.stem}.html" for path in chapters]
    page.click("svg[aria-label='Map of the model'] a[href='05_tiles.html']")
    assert page.url.endswith("notebooks/05_tiles.html")


@pytest.mark.parametrize(
    "question,first,among",
    [
        ("128256", None, "notebooks/01_tokenizer.html"),
        ("128,256", None, "notebooks/01_tokenizer.html"),
        ("aspect ratio", None, "notebooks/05_tiles.html"),
        ("grouped_attention", None, "notebooks/03_attention.html"),
        ("canvas", "book/glossary.html", "notebooks/05_tiles.html"),
        ('"attention sink"', "book/glossary.html", "notebooks/06_local_vision.html"),
    ],
)
def test_search_finds_sections(page, site, question, first, among):
    page.goto(f"{(site / 'search.html').as_uri()}?q={quote(question)}")
    page.wait_for_selector("#search-results li")
    links = page.locator("#search-results li a").evaluate_all(
        "links => links.map(link => link.getAttribute('href'))"
    )
    assert all("#" in link for link in links)  # a place on a page
    assert any(link.startswith(among) for link in links), links
    assert first is None or links[0].startswith(first), links[:3]
    marked = page.locator("#search-results mark").first.inner_text()
    assert marked.lower().replace(",", "") in question.replace(",", "").replace('"', "")
    page.locator("#search-results li a").first.click()
    name, place = page.url.split("/")[-1].split("#")
    page.wait_for_selector(f"[id='{unquote(place)}']", state="attached")
    assert name.endswith(".html")


def test_search_finds_nothing_calmly(page, site):
    page.goto(f"{(site / 'search.html').as_uri()}?q=qqzzqq")
    assert "0 sections" in page.locator("#search-results").inner_text()
    page.goto((site / "search.html").as_uri())
    assert page.locator("#search-results").inner_text() == ""


def test_the_archive_of_notebooks_is_linked_and_whole(page, site):
    page = opened(page, site, "book/setup")
    link = page.locator("a[href$='notebooks.zip']").get_attribute("href")
    with zipfile.ZipFile((site / "book" / link).resolve()) as archive:
        names = set(archive.namelist())
    for path in (ROOT / "notebooks").rglob("*"):
        if (
            path.suffix in (".ipynb", ".py", ".json", ".png")
            and "." not in path.parent.name
        ):
            assert f"llama-vision/{path.relative_to(ROOT)}" in names
    assert "llama-vision/mllama_lite/small/model.safetensors" in names


def test_print_has_hints_and_solutions_open(page, site):
    page = opened(page, site, "notebooks/03_attention")
    solution = page.locator(".solution").first
    folded = solution.bounding_box()["height"]
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator(".solution").count() == page.locator(".exercise").count()
    for box in (*page.locator(".solution").all(), *page.locator(".tip").all()):
        assert box.bounding_box()["height"] > folded + 20
    for code in page.locator(".solution pre").all():
        assert code.is_visible()
    for waiting in page.locator(".predict-waits").all():
        assert waiting.is_visible()
