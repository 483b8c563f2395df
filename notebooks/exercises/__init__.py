"""Checks of the book's exercises: each says whether an answer is right, and never what it is.

    from exercises import check

    check("cache-bytes", your_answer)

Each chapter has a module of this package; a check is a function with the label of its
exercise. It gets the answer and tries it: what the answer has to do is tested, where that is
possible, and not compared with an answer that is written down.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

CHECKS: dict[str, Callable[..., None]] = {}


class NotYet(Exception):
    """What is not so about an answer, in one sentence that does not give it away."""


class NotAnswered(Exception):
    """The place for the answer is still as the book left it."""


@dataclass(frozen=True)
class Verdict:
    """What a check says of an answer; shown in a notebook as its text."""

    right: bool
    text: str

    def __repr__(self) -> str:
        return self.text


def exercise(label: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function the check of the exercise with this label.

    The function gets the answer, or the answers, and raises NotYet or fails `expect`.
    """

    def keep(function: Callable[..., None]) -> Callable[..., None]:
        if label in CHECKS:
            raise ValueError(f"two checks have the label {label}")
        CHECKS[label] = function
        return function

    return keep


def expect(holds: object, otherwise: str) -> None:
    """Go on if something holds; otherwise the answer is not right yet, and this is why."""
    if not holds:
        raise NotYet(otherwise)


def check(label: str, *answers: Any) -> Verdict:
    """Whether the answer to an exercise is right.

    Args:
        label: of the exercise.
        answers: what you made: numbers, words, a tensor, a function.

    Returns:
        Verdict; its text is "right", "not answered yet", or "not yet: …".
    """
    if label not in CHECKS:
        raise KeyError(
            f"no exercise is called {label!r}: expected a label in this book"
        )
    if any(map(_is_empty, answers)):
        return Verdict(False, "not answered yet")
    asked = [_asked(one) if callable(one) else one for one in answers]
    try:
        CHECKS[label](*asked)
    except NotAnswered:
        return Verdict(False, "not answered yet")
    except NotYet as why:
        return Verdict(False, f"not yet: {why}")
    except (
        Exception
    ) as error:  # of the reader's own code, or of an answer of a strange type
        return Verdict(False, f"not yet: {type(error).__name__}: {error}")
    return Verdict(True, "right")


def _is_empty(answer: Any) -> bool:
    if isinstance(answer, dict):
        return any(map(_is_empty, answer.values()))
    if isinstance(answer, (tuple, list)):
        return any(map(_is_empty, answer))
    return answer is None or answer is NotImplemented or answer is ...


def _asked(function: Callable) -> Callable:
    """A reader's function; as long as it returns NotImplemented, it is not written."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if result is NotImplemented:
            raise NotAnswered
        return result

    return call


for _path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    import_module(f"{__name__}.{_path.stem}")
