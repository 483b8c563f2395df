"""The bugs of the chapters' "Break it": each is noticed, by what the page says and by the suite."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import bugs
from bugs_page import PAGE, chapters, page, table

ROOT = Path(__file__).resolve().parent.parent


def test_two_bugs_a_chapter():
    counts = Counter(one.chapter for one in bugs.BUGS.values())
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert all(counts[path.stem[3:]] >= 2 for path in notebooks), counts


@pytest.mark.parametrize("chapter", bugs.CHECKS)
def test_the_page_tells_what_notices_which_and_no_bug_stays(chapter):
    lines = table(chapter)  # puts each bug in
    for check in bugs.CHECKS[chapter].values():
        check()
    assert "\n".join(["", *lines, ""]) in PAGE.read_text(encoding="utf-8")


def test_the_page_has_all_chapters_and_nothing_else():
    text = PAGE.read_text(encoding="utf-8")
    parts = text.split("\n## ")[1:]
    tables = [part.split("\n")[2:-1] for part in parts]
    order = [chapter for chapter in chapters().values() if chapter[3:] in bugs.CHECKS]
    known = {name[3:]: lines for name, lines in zip(order, tables, strict=True)}
    assert text == page(known)


@pytest.mark.witness
def test_the_suite_notices_every_bug():
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "put_bugs_in.py"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert told == dict.fromkeys(bugs.BUGS, "caught"), done.stderr
