"""Write the page "Break it": every bug, every check of its chapter, and whether it notices.

    python tools/bugs_page.py    writes book/break_it.md

Takes the bugs of notebooks/bugs one after the other; tests/test_bugs.py compares the page with what
is measured anew.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "notebooks"))

import bugs  # noqa: E402

PAGE = ROOT / "book" / "break_it.md"
HEAD = """# Break it

<!-- Written by tools/bugs_page.py. -->

Tests that pass show little until one knows what they would have noticed. Each bug below is one that
people ship. It is put into the package from outside, by `with bug("…"):`, and every check of its
chapter is run on it. Some checks that one would trust say nothing.

{count} bugs; each of them is caught by at least one check here, and makes the named test of the
suite fail. The tables are measured anew whenever the tests run.
"""


def chapters() -> dict[str, str]:
    """{module: file name of the notebook}, in the order of the book."""
    paths = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    return {path.stem.split("_", 1)[1]: path.stem for path in paths}


def title(notebook: str) -> str:
    """A chapter's title with its number."""
    path = ROOT / "notebooks" / f"{notebook}.ipynb"
    first = json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"]
    return "".join(first).split("\n")[0].removeprefix("# ")


def table(chapter: str) -> list[str]:
    """The lines of a chapter: its bugs in words, then what notices which."""
    own = [one for one in bugs.BUGS.values() if one.chapter == chapter]
    found = {one.name: bugs.outcome(one.name) for one in own}
    assert all(any(noticed.values()) for noticed in found.values()), found
    lines = [
        f"{n}. **`{one.name}`**: {one.what} Test: `{one.test}`."
        for n, one in enumerate(own, 1)
    ]
    lines += ["", "| check | " + " | ".join(f"{n + 1}" for n in range(len(own))) + " |"]
    lines += ["|---|" + ":-:|" * len(own)]
    for what in bugs.CHECKS[chapter]:
        marks = ["**caught**" if found[one.name][what] else "passes" for one in own]
        lines.append(f"| {what} | " + " | ".join(marks) + " |")
    return lines


def page(tables: dict[str, list[str]]) -> str:
    """The page, with the lines of each chapter that has bugs."""
    lines = [HEAD.format(count=len(bugs.BUGS))]
    for chapter, notebook in chapters().items():
        if chapter in tables:
            lines += [f"## [{title(notebook)}](../notebooks/{notebook}.ipynb)", ""]
            lines += [*tables[chapter], ""]
    return "\n".join(lines)


if __name__ == "__main__":
    measured = {chapter: table(chapter) for chapter in bugs.CHECKS}
    PAGE.write_text(page(measured), encoding="utf-8")
