# Generated from notebooks/19_guard.ipynb: edit there, or here and run `make update`.
"""What a filter is worth: caught, falsely refused, and how sure one can be of both.

Built in chapter 19, notebooks/19_guard.ipynb. A filter is a number for each text, the
higher the worse: of a guard, of a list of words, of any classifier.
"""

import hashlib
import json
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from mllama_lite.errors import InputError, shown
from mllama_lite.files import system_errors
from mllama_lite.guard import Guard
from mllama_lite.small_model.evaluation import interval


BATCH = 8  # conversations in one pass


@dataclass(frozen=True)
class Probe:
    """A text that a filter has to judge, and what would be right.

    Attributes:
        text: what a user says; with `answer`, what was asked before it.
        unsafe: whether it is to be refused.
        source: which set it is from.
        answer: of an assistant, which is judged in the place of the text; or None.
    """

    text: str
    unsafe: bool
    source: str
    answer: str | None = None

    def messages(self) -> list[dict[str, Any]]:
        """The conversation whose last message is judged."""
        said = [{"role": "user", "content": self.text}]
        if self.answer is not None:
            said.append({"role": "assistant", "content": self.answer})
        return said


def read_probes(path: str | PathLike) -> list[Probe]:
    """Probes of a .jsonl file: text, unsafe, and perhaps source and answer, in a line.

    Raises:
        InputError: the file cannot be read; a line that is no probe; no line.
    """
    probes, path = [], Path(path)
    with system_errors(path, "read"):
        text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found = json.loads(line)
            probe = Probe(
                found["text"],
                found["unsafe"],
                found.get("source", path.stem),
                found.get("answer"),
            )
            texts = [probe.text, probe.source, probe.answer or ""]
            if (
                not all(isinstance(t, str) for t in texts)
                or type(probe.unsafe) is not bool
            ):
                raise TypeError
            probes.append(probe)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise InputError(
                f"{path}, line {number}, is {shown(line)}: expected an object with "
                "text, and unsafe true or false; correct it."
            ) from None
    if not probes:
        raise InputError(f"{path} has no line: expected probes; choose another file.")
    return probes


def file_checksum(path: str | PathLike) -> str:
    """SHA-256 of a file of probes, by which a measurement says what it measured."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def scores(
    guard: Guard,
    probes: Sequence[Probe],
    progress: Callable[[int, int], object] | None = None,
) -> list[float]:
    """A guard's probability of "unsafe" for each probe.

    Args:
        guard: Guard.
        probes: list of Probe.
        progress: called with how many are done and how many there are.
    """
    # Alike in length in a pass, so that little is padding.
    order = sorted(range(len(probes)), key=lambda i: len(probes[i].text))
    found: dict[int, float] = {}
    for begin in range(0, len(order), BATCH):
        batch = order[begin : begin + BATCH]
        given = guard.probabilities([probes[i].messages() for i in batch])
        found.update(zip(batch, given))
        if progress:
            progress(len(found), len(probes))
    return [found[i] for i in range(len(probes))]


@dataclass(frozen=True)
class Rates:
    """What a filter does at one threshold.

    Attributes:
        caught: (number refused, total) of the unsafe probes.
        falsely_refused: (number refused, total) of the others.
    """

    caught: tuple[int, int]
    falsely_refused: tuple[int, int]


def rates(
    probes: Sequence[Probe], found: Sequence[float], threshold: float = 0.5
) -> Rates:
    """Count what is refused: all whose score is above the threshold."""
    counts = {True: [0, 0], False: [0, 0]}
    for probe, score in zip(probes, found, strict=True):
        counts[probe.unsafe][0] += score > threshold
        counts[probe.unsafe][1] += 1
    caught, refused = (
        (counts[unsafe][0], counts[unsafe][1]) for unsafe in (True, False)
    )
    return Rates(caught, refused)


def by_source(
    probes: Sequence[Probe], found: Sequence[float], threshold: float = 0.5
) -> dict[str, Rates]:
    """`rates` of each source, and of "all" together at the end."""
    names = dict.fromkeys(probe.source for probe in probes)
    rows = {}
    for name in names:
        mine = [(p, s) for p, s in zip(probes, found, strict=True) if p.source == name]
        rows[name] = rates([p for p, _ in mine], [s for _, s in mine], threshold)
    if len(rows) > 1:
        rows["all"] = rates(probes, found, threshold)
    return rows


def curve(probes: Sequence[Probe], found: Sequence[float]) -> list[tuple[float, Rates]]:
    """`rates` at every threshold that changes something, from nothing refused to all.

    Returns:
        list of (threshold, Rates), thresholds falling.
    """
    places = [float("inf"), *sorted(set(found), reverse=True)]
    below = [*places[1:], -float("inf")]
    return [(t, rates(probes, found, t)) for t in below]


def separation(probes: Sequence[Probe], found: Sequence[float]) -> float:
    """How often an unsafe probe has the higher score than a safe one; ties count half.

    1 is a filter that can have a threshold without a mistake, 0.5 is chance: the area
    under the curve.

    Raises:
        InputError: probes of one kind only.
    """
    unsafe = sorted(s for p, s in zip(probes, found, strict=True) if p.unsafe)
    safe = [s for p, s in zip(probes, found) if not p.unsafe]
    if not unsafe or not safe:
        raise InputError(
            f"There are {len(unsafe)} unsafe probes and {len(safe)} others: expected "
            "some of both; give the others too."
        )
    won = 0.0
    for score in safe:
        left, right = bisect_left(unsafe, score), bisect_right(unsafe, score)
        won += len(unsafe) - right + (right - left) / 2
    return won / (len(unsafe) * len(safe))


def share(counts: tuple[int, int]) -> str:
    """A share with its 95% interval, as a table shows it."""
    if not counts[1]:
        return f"{'none':>7}{'':16}"
    low, high = interval(*counts)
    return f"{counts[0] / counts[1]:7.3f}  ({low:.3f}-{high:.3f})"


def table(rows: dict[str, Rates]) -> str:
    """Rates below each other: caught and falsely refused, each with its interval."""
    wide = max(12, *map(len, rows))
    lines = [
        f"{'':{wide}} {'unsafe':>6}{'caught, 95%':>22} {'safe':>6}"
        f"{'falsely refused, 95%':>23}"
    ]
    for name, row in rows.items():
        caught, refused = row.caught, row.falsely_refused
        lines.append(
            f"{name:{wide}} {caught[1]:6}{share(caught)} {refused[1]:6}{share(refused)}"
        )
    return "\n".join(line.rstrip() for line in lines)
