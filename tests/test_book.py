"""The book's hand-written pages keep to the code."""

import hashlib
import json
import re
from pathlib import Path

import pytest

import commands
import conftest
import notebooks
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.small_model.evaluation import interval

ROOT = Path(__file__).resolve().parent.parent
CODE = "\n".join(
    path.read_text() for path in sorted((ROOT / "mllama_lite").glob("*.py"))
)


def test_names_on_the_notation_page_are_names_in_the_code():
    rows = [
        line
        for line in (ROOT / "book" / "notation.md").read_text().splitlines()
        if line.startswith("| $")
    ]
    names = {name for row in rows for name in re.findall(r"`([A-Za-z_]+)`", row)}
    assert len(names) > 20
    assert [n for n in sorted(names) if not re.search(rf"\b{n}\b", CODE)] == []


def test_sections_that_fold_are_sections_of_the_book():
    import tracks

    titles = {
        line.lstrip("#").strip().replace("`", "")
        for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")
        for cell in json.loads(path.read_text())["cells"]
        if cell["cell_type"] == "markdown"
        for line in "".join(cell["source"]).splitlines()
        if line.startswith("#")
    }
    for patterns in tracks.FOLDED.values():
        for pattern in patterns:
            assert any(re.fullmatch(pattern, title) for title in titles), pattern


def test_every_module_is_on_a_page_of_the_api():
    names = ("api.md", "api_roads.md")
    page = "".join((ROOT / "book" / name).read_text() for name in names)
    package = ROOT / "mllama_lite"
    paths = [p.relative_to(package).with_suffix("") for p in package.rglob("*.py")]
    made = [p for p in paths if p.parts[0] != "cli" and not p.name.startswith("__")]
    assert len(made) > 30
    names = [".".join(("mllama_lite", *path.parts)) for path in made]
    assert [n for n in names if f"automodule:: {n}\n" not in page] == []


def test_the_way_through_names_what_each_chapter_writes():
    """`checkpoints/` stands for all that a chapter writes in that room."""
    intro = (ROOT / "book" / "intro.md").read_text()
    rows = {
        match[1]: set(re.findall(r"`([^`]+)`", match[2]))
        for match in re.finditer(r"^\| \[.*?/(\w+\.ipynb)\).*\| (.*) \|$", intro, re.M)
    }
    written = {name: set() for name in rows}
    for module, (_, sources) in notebooks.modules(ROOT).items():
        for name in sources:
            written[name].add(module)
    for name, modules in written.items():
        rooms = {module.rpartition("/")[0] + "/" for module in modules}
        assert rows[name] <= modules | rooms, name
        said = {m for m in modules if {m, m.rpartition("/")[0] + "/"} & rows[name]}
        assert said == modules, name


def test_the_page_of_commands_is_what_they_say():
    """In any Python's way of breaking lines."""
    page = (ROOT / "book" / "commands.md").read_text(encoding="utf-8")
    assert page.split() == commands.page().split(), (
        "run tools/commands.py book/commands.md"
    )


def test_every_message_on_the_page_of_trouble_is_one_of_the_code():
    """What is quoted there in a code span at the head of an entry, `...` for what varies."""
    page = (ROOT / "book" / "trouble.md").read_text(encoding="utf-8")
    package = "".join(p.read_text() for p in (ROOT / "mllama_lite").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", package)  # strings that go on in the next line
    code = re.sub(r"\{[^{}]*\}", "...", code)
    ours = re.findall(r"^### `(.+)`$", page, re.M)
    assert len(ours) >= 8
    assert [message for message in ours if message not in code] == []


def test_no_rule_of_a_style_sheet_is_left_open():
    sheets = [
        p for p in (ROOT / "book" / "assets").rglob("*.css") if "vendor" not in p.parts
    ]
    assert len(sheets) >= 3
    for sheet in sheets:
        depth = 0
        for mark in re.findall(
            r"/\*|[{}]", re.sub(r"/\*.*?\*/", "", sheet.read_text(), flags=re.S)
        ):
            depth += {"{": 1, "}": -1, "/*": 9}[mark]
            assert 0 <= depth <= 2, sheet.name
        assert depth == 0, sheet.name


def test_every_citation_is_in_the_bibliography():
    known = set(
        re.findall(r"@\w+\{(\w+),", (ROOT / "book" / "references.bib").read_text())
    )
    pages = [*(ROOT / "book").glob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    cited = {
        key.strip()
        for path in pages
        for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", path.read_text())
        for key in keys.split(",")
    }
    assert cited <= known, cited - known


def held_out_table():
    return json.loads((ROOT / "notebooks/measured/held_out.json").read_text())


def test_the_table_was_measured_with_the_weights_that_ship():
    weights = (find_folder() / "model.safetensors").read_bytes()
    measured = held_out_table()
    assert measured["weights_sha256"] == hashlib.sha256(weights).hexdigest()
    assert measured["split"] == "test"
    assert measured["counts"]["right"]["all"][1] >= 5000


def test_the_table_of_drawings_is_the_one_measured():
    path = ROOT / "notebooks/measured/drawings/shipped.json"
    measured = json.loads(path.read_text())
    assert measured["weights_sha256"] == held_out_table()["weights_sha256"]
    page = (ROOT / "book" / "live.md").read_text()
    rows = [
        rf"^\| {group} \| .* \| {right} of {total} \|$"
        for group, (right, total) in measured["right"].items()
    ]
    assert len(rows) == 5 and all(re.search(row, page, re.M) for row in rows)


def test_the_table_in_the_readme_is_the_one_measured():
    columns = held_out_table()["counts"]
    wanted = []
    for row, (right, total) in columns["right"].items():
        low, high = interval(right, total)
        cells = [row, f"{right / total:.3f} ({low:.3f} to {high:.3f})"]
        for name in ("unseen", "wrong", "blank", "none", "guess"):
            one, of = columns[name][row]
            cells.append(f"{one / of:.3f}")
        wanted.append("| " + " | ".join(cells) + " |")
    readme = (ROOT / "README.md").read_text()
    assert [line for line in wanted if line not in readme] == []


@pytest.mark.parametrize(
    "before, now, limit, same",
    [
        (0, 0, 0, True),
        (1, 0, 1, False),
        (6e-6, 6e-7, 1e-4, True),
        (2e-5, 6e-7, 1e-4, False),
        (9e-7, 1e-5, 1e-3, True),
        (9e-7, 3e-5, 1e-3, False),
    ],
)
def test_a_figure_of_the_page_has_its_size(before, now, limit, same):
    assert conftest.of_one_size(before, now, limit) is same
