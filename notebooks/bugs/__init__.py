"""Bugs that people ship, each put into the exported code from outside, and what catches it.

    from bugs import bug

    with bug("heads-repeated-as-a-block"):
        ...  # the package has the bug in here
    tell("heads-repeated-as-a-block")

Each chapter has a module of this package: its bugs, and the checks that are tried on them. A check
is a function that raises when it notices something. The page "Break it" has the whole table, and
tests/test_bugs.py measures it anew.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

BUGS: dict[str, "Bug"] = {}
CHECKS: dict[
    str, dict[str, Callable[[], None]]
] = {}  # chapter: {what it compares: check}


@dataclass(frozen=True)
class Bug:
    """A mistake that can be put into the package.

    Attributes:
        name: as a link would have it.
        chapter: name of the module here, which is the chapter's.
        what: the mistake, in one sentence.
        test: of the suite, that fails with it: "tests/test_parts.py::test_name".
        put_in: makes a context manager.
    """

    name: str
    chapter: str
    what: str
    test: str
    put_in: Callable[[], AbstractContextManager[None]]


def a_bug(name: str, what: str, test: str) -> Callable[[Callable], Callable]:
    """Make a generator function, which yields while the bug is in, one of BUGS."""

    def keep(function: Callable[[], Iterator[None]]) -> Callable[[], Iterator[None]]:
        if name in BUGS:
            raise ValueError(f"two bugs are called {name}")
        chapter = function.__module__.split(".")[-1]
        BUGS[name] = Bug(name, chapter, what, test, contextmanager(function))
        return function

    return keep


def a_check(what: str) -> Callable[[Callable], Callable]:
    """Make a function one of its chapter's checks, named by what it compares."""

    def keep(function: Callable[[], None]) -> Callable[[], None]:
        chapter = function.__module__.split(".")[-1]
        CHECKS.setdefault(chapter, {})[what] = function
        return function

    return keep


def bug(name: str) -> AbstractContextManager[None]:
    """A context in which the package has a bug.

    Raises:
        KeyError: there is no bug of this name.
    """
    if name not in BUGS:
        raise KeyError(f"no bug is called {name!r}: expected one of {', '.join(BUGS)}")
    return BUGS[name].put_in()


def outcome(name: str) -> dict[str, bool]:
    """With a bug in: for each check of its chapter, whether it notices."""
    found = {}
    for what, check in CHECKS[BUGS[name].chapter].items():
        with bug(name):
            try:
                check()
                found[what] = False
            except Exception:  # a check that fails, or code that can't go on
                found[what] = True
    return found


def tell(name: str) -> None:
    """Print what `outcome` found, a line for each check."""
    for what, noticed in outcome(name).items():
        print("caught" if noticed else "passes", what, sep="   ")


@contextmanager
def replaced(original: Any, wrong: Any) -> Iterator[None]:
    """Put something in a function's or class's place, wherever it was imported to.

    A method is replaced on its class: `replaced(KVCache.update, wrong)`.
    """
    with ExitStack() as undo:
        owners = [m for m in list(sys.modules.values()) if hasattr(m, "__dict__")]
        parts = getattr(original, "__qualname__", "").split(".")
        if len(parts) == 2:  # a method
            owners = [getattr(sys.modules[original.__module__], parts[0])]
        places = [
            (owner, name)
            for owner in owners
            for name, value in list(vars(owner).items())
            if value is original
        ]
        if not places:
            raise LookupError(f"{original!r} was not found anywhere")
        for owner, name in places:
            setattr(owner, name, wrong)
            undo.callback(setattr, owner, name, original)
        yield


for _path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    import_module(f"{__name__}.{_path.stem}")
