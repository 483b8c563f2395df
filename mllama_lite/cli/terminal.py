"""What a person sees: answers, progress, sentences. Nothing here may end a command."""

import os
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import Any, TextIO


def say(text: str) -> None:
    """Write a piece of an answer to standard output, at once.

    An answer is what a model wrote; on a terminal its control characters are escaped.
    """
    if sys.stdout.isatty():
        text = printable(text)
    print(text, end="", flush=True)


def printable(text: str) -> str:
    """`text` with control characters, but not newlines and tabs, escaped."""
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) == "Cc" and character not in "\n\t"
        else character
        for character in text
    )


def note(text: object, end: str = "\n") -> None:
    """Write to standard error, if it can be written to."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        silence(sys.stderr)


def complain(error: object) -> None:
    """The sentence that a command, or a line of a conversation, ends with."""
    text = str(error)
    note(text if text.startswith("usage: ") else f"mllama-lite: {text}")


def silence(stream: TextIO) -> None:
    """Write no more to a stream that is broken: Python would try, and complain, at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError, AttributeError):  # a stream without a number
        pass


def loading_progress() -> Callable[[int, int], None] | None:
    """A bar on standard error that leaves nothing behind; None off a terminal."""
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        bar = "#" * (30 * done // total)
        end = "\r\033[K" if done == total else ""
        size = f"{done / 2**30:.2f} of {total / 2**30:.2f} GiB"
        note(f"\rloading [{bar:<30}] {size}", end)

    return show


def training_progress(
    name: str = "answers", every: tuple[int, int] = (10, 500)
) -> Callable[[Any], None]:
    """A line on standard error that is written anew every so many steps.

    Args:
        name: of the loss in the trainer's history.
        every: steps, on a terminal and off it.
    """
    begin, terminal = time.monotonic(), sys.stderr.isatty()
    first: list[int] = []

    def show(trainer: Any) -> None:
        first[:] = first or [trainer.step - 1]
        done, total = trainer.step, getattr(trainer, "plan", trainer).steps
        if done % every[not terminal] and done != total:
            return
        each = (time.monotonic() - begin) / (done - first[0])
        left = round(each * (total - done))
        last = trainer.history[-1] if trainer.history else {}
        loss = f", {name} {last[name]:.3f}" if last.get(name) else ""
        bar = "#" * (30 * done // total)
        text = f"training [{bar:<30}] {done} of {total}{loss}"
        text += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        start = "\r" if terminal else ""
        note(start + text, "" if terminal and done != total else "\n")

    return show
