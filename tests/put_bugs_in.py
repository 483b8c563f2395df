"""Which bugs make their test of the suite fail: python tests/put_bugs_in.py

Prints a line for each bug of notebooks/bugs: its name, and caught or missed. Run by test_bugs.py,
in a process of its own.
"""

import contextlib
import io
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "notebooks"), str(ROOT / "tools"), str(ROOT / "benchmarks")]

import bugs  # noqa: E402

QUIET = ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", "--rootdir", str(ROOT)]


def run(*arguments):
    """pytest's exit status; what it prints is kept back."""
    with contextlib.redirect_stdout(io.StringIO()):
        return pytest.main([*QUIET, *map(str, arguments)])


def main():
    # All test modules are imported without a bug; what they imported is replaced later.
    files = {ROOT / one.test.split("::")[0] for one in bugs.BUGS.values()}
    assert run("--collect-only", *sorted(files)) == pytest.ExitCode.OK
    for one in bugs.BUGS.values():
        with bugs.bug(one.name):
            status = run(ROOT / one.test)
        caught = status == pytest.ExitCode.TESTS_FAILED
        print(one.name, "caught" if caught else f"missed ({status!r})", flush=True)


if __name__ == "__main__":
    main()
