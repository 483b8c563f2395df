# Generated from notebooks/20_alignment.ipynb: edit there, or here and run `make update`.
"""Pictures with what is said about them: files of LLaVA, COCO and this project, one record.

Built in chapter 20, notebooks/20_alignment.ipynb. Whatever the file, a record is a
conversation about pictures. What is wrong with a file is told line by line, all of it,
before anything is trained.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from mllama_lite.adapters.data import LONGEST_LINE, Bad, lines_of, message_problems
from mllama_lite.errors import InputError, shown
from mllama_lite.files import as_path, opened, parse_json, read_bytes


PLACE = "<image>"  # where a picture stands in a text, as LLaVA's files write it
LARGEST_FILE = 2**30  # bytes of a file that is read whole
LONGEST_TEXT = 2**16  # characters of a message
MOST_IMAGES = 64  # of a record
ROLES = {"human": "user", "gpt": "assistant", "system": "system"}


@dataclass(frozen=True)
class Record:
    """One conversation about pictures.

    Attributes:
        where: file and line, or number, that it came from.
        images: paths, in the order of their places.
        messages: of dicts with `role` and `content`; a picture's place in a content is
            PLACE, and there are as many places as pictures.
        about: what else the file says, as `concept` and `split`; text alone.
    """

    where: str
    images: tuple[Path, ...]
    messages: tuple[dict[str, str], ...]
    about: dict[str, str] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """What is said last: of a captioned picture its caption."""
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Found:
    """What a file holds.

    Attributes:
        records: list of Record.
        problems: a text for each thing that is wrong, with file and line or number.
        num_bad: entries that are no records.
    """

    records: list[Record]
    problems: list[str]
    num_bad: int


def read_captions(
    file: str | PathLike,
    folder: str | PathLike | None = None,
    skip_bad: bool = False,
    report: Callable[[str], object] | None = print,
) -> list[Record]:
    """All records of a file of captions or conversations.

    Args:
        file: .jsonl, an object a line; or .json, LLaVA's list or COCO's object. An object
            of the first two has `conversations` and perhaps `image`, or `caption` and
            `file`.
        folder: that the pictures lie in; None for the file's own.
        skip_bad: go on without entries that are no records, and report them.
        report: called with a text, or None.

    Returns:
        list of Record, in the order of the file.

    Raises:
        InputError: the file cannot be read or holds no record; some entries are none: the
            error's arguments list all of them, and its text the first.
    """
    file = as_path(file, "a file of captions")
    folder = file.parent if folder is None else as_path(folder, "a folder of pictures")
    found = find_records(file, folder)
    if found.problems and not skip_bad:
        raise InputError(
            f"{file} has bad entries, {found.num_bad} of them: expected none; correct or "
            "remove them, or go on without them with --skip-bad:",
            *found.problems,
        )
    if found.problems and report:
        told = f"bad entries that are skipped, {found.num_bad} of them:"
        report(str(InputError(told, *found.problems)))
    if not found.records:
        raise InputError(
            f"{file} holds no captions: expected at least one picture with its caption; "
            "add some."
        )
    return found.records


def find_records(file: Path, folder: Path) -> Found:
    """What is in a file, good and bad; see `read_captions`."""
    known: dict[str, str | None] = {}  # what is wrong with each picture's name, or None
    records, problems, bad = [], [], 0
    for where, entry in _entries(file):
        try:
            if isinstance(entry, Bad):
                raise entry
            records.append(_record(where, entry, folder, known))
        except Bad as error:
            problems += [f"{where}: {problem}" for problem in error.args]
            bad += 1
    return Found(records, problems, bad)


def _entries(file: Path) -> Iterator[tuple[str, Any]]:
    """(where, entry or Bad) of a file, one after another."""
    if file.suffix == ".jsonl":
        for number, line in enumerate(lines_of(file), 1):
            where = f"{file.name} line {number}"
            if len(line) > LONGEST_LINE:
                yield where, Bad(f"it has more than {LONGEST_LINE:,} bytes")
            elif line.strip():
                yield where, _parsed(line)
        return
    data = read_bytes(file, LARGEST_FILE)
    listed = data.lstrip()[:1] == b"["
    # A list is read as an object's, so that one reader checks both.
    document = parse_json(b'{"": %b}' % data if listed else data, file)
    if listed:
        for number, entry in enumerate(document[""], 1):
            yield f"{file.name} entry {number}", entry
    elif "annotations" in document:
        yield from _coco(document, file.name)
    else:
        raise InputError(
            f"{file} has the keys {shown(list(document)[:9])}: expected COCO's images and "
            "annotations, or a list of conversations; give such a file."
        )


def _parsed(line: bytes) -> Any:
    try:
        return parse_json(line, "it")
    except InputError as error:
        return Bad(str(error).split(": expected")[0])


def _coco(document: dict[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """COCO's annotations as entries with `file` and `caption`; its pictures have numbers."""
    names: dict[Any, Any] = {}
    for number, image in enumerate(_list(document, "images"), 1):
        where = f"{name} image {number}"
        ok = isinstance(image, dict) and isinstance(image.get("id"), (int, str))
        if not ok or not isinstance(image.get("file_name"), str):
            yield where, Bad(f"it is {shown(image)}, expected id and file_name")
        elif image["id"] in names:
            yield where, Bad(f"the id {shown(image['id'])} stands there twice")
        else:
            names[image["id"]] = image["file_name"]
    for number, entry in enumerate(_list(document, "annotations"), 1):
        where = f"{name} annotation {number}"
        key = entry.get("image_id") if isinstance(entry, dict) else None
        if not isinstance(key, (int, str)) or key not in names:
            yield where, Bad(f"its image_id is {shown(key)}, which is no image's id")
        else:
            yield where, {"file": names[key], "caption": entry.get("caption")}


def _list(document: dict[str, Any], key: str) -> list[Any]:
    found = document.get(key)
    if not isinstance(found, list):
        raise InputError(
            f"The captions have {key} {shown(found)}: expected a list; give a file of "
            "COCO's captions."
        )
    return found


def _record(
    where: str, entry: Any, folder: Path, known: dict[str, str | None]
) -> Record:
    """A Record of one object.

    Raises:
        Bad: with everything that is wrong with it; pictures are not opened.
    """
    if not isinstance(entry, dict):
        raise Bad(f"it is a {type(entry).__name__}, expected an object with keys")
    if "conversations" in entry:
        names, messages, problems = _conversation(entry)
    else:
        names, messages, problems = _caption(entry)
    if len(names) > MOST_IMAGES:
        problems.append(f"{len(names)} images, expected at most {MOST_IMAGES}")
        names = names[:MOST_IMAGES]
    for name in names:
        if name not in known:
            known[name] = _name_problem(name, folder)
        if (problem := known[name]) is not None:
            problems.append(problem)
    for message in messages:
        text = message["content"]
        if isinstance(text, str) and len(text) > LONGEST_TEXT:
            problems.append(
                f"{len(text):,} characters, expected at most {LONGEST_TEXT:,}"
            )
    if not problems:  # who speaks, and whether all is text
        problems = message_problems([dict(message) for message in messages])
    if problems:
        raise Bad(*problems)
    about = {
        k: v for k, v in entry.items() if isinstance(v, str) and k != "conversations"
    }
    return Record(where, tuple(folder / n for n in names), tuple(messages), about)


def _caption(
    entry: dict[str, Any],
) -> tuple[list[str], list[dict[str, str]], list[str]]:
    """Names, messages and problems of an object with `file` and `caption`."""
    name, caption = entry.get("file"), entry.get("caption")
    problems = []
    if not isinstance(name, str):
        problems.append(f"its file is {shown(name)}, expected a picture's name")
    if not isinstance(caption, str) or not caption.strip() or PLACE in caption:
        problems.append(f"its caption is {shown(caption)}, expected some text")
    messages = [
        {"role": "user", "content": PLACE},
        {"role": "assistant", "content": caption if isinstance(caption, str) else "?"},
    ]
    return [name] if isinstance(name, str) else [], messages, problems


def _conversation(
    entry: dict[str, Any],
) -> tuple[list[str], list[dict[str, str]], list[str]]:
    """Names, messages and problems of LLaVA's object."""
    names, problems = entry.get("image") or entry.get("images") or [], []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        problems.append(f"its images are {shown(names)}, expected their names")
        names = []
    messages, places, turns = [], 0, entry["conversations"]
    for turn in turns if isinstance(turns, list) else [turns]:
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if speaker not in ROLES or not isinstance(turn.get("value"), str):
            problems.append(
                f"a turn is {shown(turn)}, expected from ({', '.join(ROLES)}) and value"
            )
            continue
        if speaker != "human" and PLACE in turn["value"]:
            problems.append(
                f"{PLACE} in what {speaker} says, expected it of human alone"
            )
        places += turn["value"].count(PLACE)
        messages.append({"role": ROLES[speaker], "content": turn["value"].strip()})
    if places != len(names):
        problems.append(
            f"{places} times {PLACE} for {len(names)} images, expected as many"
        )
    return names, messages, problems


def _name_problem(name: str, folder: Path) -> str | None:
    """What is wrong with a picture's name, as a clause; None if it can be opened."""
    parts = Path(name).parts
    if not name or os.path.isabs(name) or ".." in parts or "://" in name:
        return f"the file name {shown(name)} is not a path inside {folder}"
    try:
        with opened(folder / name):  # no pipe, which would be waited for
            pass
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            return f"the file name {shown(name)} leads out of {folder}"
    except InputError as error:
        return str(error).split(": expected")[0]
    return None
