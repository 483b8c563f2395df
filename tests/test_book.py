"""The book's hand-written pages keep to the code."""

import re
from pathlib import Path

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


def test_every_module_is_on_the_api_page():
    page = (ROOT / "book" / "api.md").read_text()
    modules = {path.stem for path in (ROOT / "mllama_lite").glob("*.py")}
    missing = [
        m
        for m in modules - {"__init__", "__main__", "cli"}
        if f"automodule:: mllama_lite.{m}\n" not in page
    ]
    assert missing == []


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
