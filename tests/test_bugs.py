"""The bugs of the chapters' "Break it": each is noticed, by what the page says and by the suite."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import bugs
from bugs_page import PAGE, page

ROOT = Path(__file__).resolve().parent.parent


def test_two_bugs_a_chapter():
    counts = Counter(one.chapter for one in bugs.BUGS.values())
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert all(counts[path.stem[3:]] >= 2 for path in notebooks), counts


@pytest.mark.parametrize("chapter", bugs.CHECKS)
def test_checks_pass_without_a_bug(chapter):
    for check in bugs.CHECKS[chapter].values():
        check()


def test_page_tells_what_notices_which():
    assert PAGE.read_text(encoding="utf-8") == page()


@pytest.mark.parametrize("name", bugs.BUGS)
def test_every_bug_is_noticed_and_taken_out(name):
    assert any(bugs.outcome(name).values())
    for check in bugs.CHECKS[bugs.BUGS[name].chapter].values():
        check()


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
