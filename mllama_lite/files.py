# Generated from notebooks/15_files.ipynb: edit there, or here and run `make update`.
"""Files from others, read with care, and files of our own, written aside first.

Built in chapter 15, notebooks/15_files.ipynb. Whatever the system refuses, such as
a file without permission or a full disk, becomes an InputError here and nowhere else;
and what an entry of a file may hold is checked here, for every kind of file.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError

from mllama_lite.errors import InputError, shown


def damaged_file(path: Path | str, what: object) -> InputError:
    """The error for a file that does not hold what its format promises."""
    return InputError(
        f"{path} is truncated or damaged ({what}): expected a complete file; download "
        "it again."
    )


@contextmanager
def system_errors(path: str | PathLike, doing: str) -> Iterator[None]:
    """Within a `with` block: what the system refuses becomes an InputError.

    Args:
        path: of the file or folder that it is about.
        doing: "read" or "written".
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    except RuntimeError as error:
        if "inline_container" not in str(error):  # where torch.save writes
            raise
        reason = "not all of it could be written; the disk may be full"
    except ValueError as error:
        if not re.search("null (byte|character)|surrogates not allowed", str(error)):
            raise
        reason = "no file can have this name"
    else:
        return
    raise InputError(
        f"{path} cannot be {doing} ({reason}): expected one that can; check its name, "
        "its permissions and the disk."
    ) from None


def as_path(path: Any, what: str) -> Path:
    """A path from text or a path; anything else is refused, empty text too.

    Args:
        path: what was given.
        what: what it is the path of, for the error.
    """
    if not isinstance(path, (str, Path)) or not str(path):
        raise InputError(
            f"The path of {what} is {shown(path)}: expected text or a pathlib.Path; "
            "give one."
        )
    return Path(path)


def exists(path: Path) -> bool:
    """Whether a name is taken, be it by a folder, a pipe, or a link that leads nowhere.

    Raises:
        InputError: the system doesn't say, for want of permission for instance.
    """
    with system_errors(path, "read"):
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True


def is_folder(path: Path) -> bool:
    """Whether there is a folder, or a link to one; `Path.is_dir` keeps refusals to itself.

    Raises:
        InputError: the system doesn't say, for want of permission for instance.
    """
    with system_errors(path, "read"):
        try:
            return stat.S_ISDIR(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False


@contextmanager
def opened(path: Path | str, buffering: int = -1) -> Iterator[Any]:
    """Open a file for reading. Pipes and devices, which may never end, are refused.

    Raises:
        InputError: it is not there, is no regular file, or the system refuses it.
    """
    with system_errors(path, "read"):
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError(
                f"{path} is a folder, a pipe or a device: expected a file; check the "
                "name."
            )
        with open(path, "rb", buffering) as file:
            yield file


def read_bytes(path: Path | str, most: int) -> bytes:
    """A file whole, if it has at most so many bytes; see `opened`."""
    with opened(path) as file:
        data = file.read(most + 1)
        if len(data) > most:
            size = max(os.stat(path).st_size, len(data))
            raise InputError(
                f"{path} has {size:,} bytes: expected at most {most:,} for a file of "
                "its kind; download it again."
            )
    return data


def parse_json(data: bytes, where: Path | str) -> dict[str, Any]:
    """Parse JSON that has to be one object, to the letter of the standard.

    Args:
        data: UTF-8.
        where: what to call it in an error.

    Raises:
        InputError: it is no JSON or no object; a key stands twice in an object; NaN and
            Infinity, which Python would take; numbers of a hundred digits and more.
    """
    try:
        document = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_keys_once,
            parse_constant=_no_number,
            parse_int=lambda text: int(text) if len(text) < 100 else _no_number(text),
        )
        if type(document) is not dict:
            raise ValueError(f"a {type(document).__name__}")
    except RecursionError:
        raise damaged_file(where, "it is nested too deeply") from None
    except ValueError as error:
        raise damaged_file(where, f"it is not a JSON object: {error}") from None
    return document


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for name, value in pairs:
        if name in document:
            raise ValueError(f"the key {shown(name)} stands in it twice")
        document[name] = value
    return document


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{shown(text)} is no number of JSON that can be used")


def read_json(path: Path | str, most: int = 2**20) -> dict[str, Any]:
    """Parse a JSON file of at most so many bytes; see `read_bytes` and `parse_json`."""
    return parse_json(read_bytes(path, most), path)


@dataclass(frozen=True)
class Kind:
    """What an entry of a file may hold.

    Attributes:
        expected: in words, for the error.
        fits: whether a value is of this kind; None stands for an absent entry too.
    """

    expected: str
    fits: Callable[[Any], bool]


def whole(least: int, most: int) -> Kind:
    """A whole number; neither true nor 1.0 is one."""
    return Kind(
        f"a whole number from {least:,} to {most:,}",
        lambda value: type(value) is int and least <= value <= most,
    )


def number(least: float, most: float) -> Kind:
    """A number, whole or not; NaN and infinity are none."""
    return Kind(
        f"a number from {least:g} to {most:g}",
        lambda value: type(value) in (int, float) and least <= value <= most,
    )


def one_of(*values: Any) -> Kind:
    """One of some values, of its own type: 0 is not false."""
    return Kind(
        " or ".join(json.dumps(value) for value in values),
        lambda value: any(type(value) is type(v) and value == v for v in values),
    )


FLAG = Kind("true or false", lambda value: type(value) is bool)
ANY_TEXT = Kind("text", lambda value: type(value) is str and len(value) < 10_000)
ANY_OBJECT = Kind("an object", lambda value: type(value) is dict)


def list_of(kind: Kind, least: int = 0, most: int = 1000) -> Kind:
    """A list of so many values of a kind."""
    return Kind(
        f"a list of {least:,} to {most:,} entries, each {kind.expected}",
        lambda value: (
            type(value) is list
            and least <= len(value) <= most
            and all(map(kind.fits, value))
        ),
    )


def object_of(kind: Kind, most: int) -> Kind:
    """An object with any names and at most so many values, all of a kind."""
    return Kind(
        f"an object of at most {most:,} entries, each {kind.expected}",
        lambda value: (
            type(value) is dict
            and len(value) <= most
            and all(map(kind.fits, value.values()))
        ),
    )


def maybe(*kinds: Kind) -> Kind:
    """One of some kinds, or null, or nothing at all."""
    return Kind(
        ", or ".join([*(kind.expected for kind in kinds), "null"]),
        lambda value: value is None or any(kind.fits(value) for kind in kinds),
    )


def check_fields(
    document: Any, fields: Mapping[str, Kind], where: Path | str, within: str = ""
) -> dict[str, Any]:
    """Hold the entries of a file against what each may hold.

    Args:
        document: what was parsed.
        fields: for each name the Kind of its value. Other entries are nobody's
            business and stay out.
        where: what to call the file in an error.
        within: names of the entries in which the document lies, as "text_config.".

    Returns:
        dict of the entries of these names that are neither absent nor null.

    Raises:
        InputError: the first entry that is not of its kind.
    """
    if type(document) is not dict:
        raise wrong_entry(where, within.strip(".") or "contents", document, "an object")
    for name, kind in fields.items():
        if kind.fits(document.get(name)):
            continue
        if name not in document:
            raise InputError(
                f"{where} has no entry '{within}{name}': expected {kind.expected}; "
                "download the file again."
            )
        raise wrong_entry(where, within + name, document[name], kind.expected)
    found = {name: document.get(name) for name in fields}
    return {name: value for name, value in found.items() if value is not None}


def wrong_entry(
    where: Path | str, name: str, value: object, expected: object
) -> InputError:
    """The InputError for an entry of a file that cannot be used."""
    return InputError(
        f"{where} has {name} {shown(value)}: expected {expected}; correct it, or "
        "download the file again."
    )


def check_relations(
    given: Mapping[str, Any],
    relations: Iterable[tuple[bool, str, object]],
    where: Path | str,
    within: str = "",
) -> None:
    """Refuse the first of some relations between entries that does not hold.

    Args:
        given: the entries.
        relations: of each, whether it holds, the entry that is wrong if it doesn't, and
            what was expected of that.
        where, within: see `check_fields`.
    """
    for holds, name, expected in relations:
        if not holds:
            raise wrong_entry(where, within + name, given.get(name), expected)


@contextmanager
def written_aside(path: Path | str) -> Iterator[Path]:
    """Write a file whole or not at all, and lose nothing that was there before.

    The block gets the path of a new file beside the one that is meant, and writes that.
    When the block has ended it is renamed; if it fails, it is removed.

    Args:
        path: of the file that is meant; what is there already is replaced, unless it is
            a folder, a device, or anything else but a file.

    Raises:
        InputError: the system doesn't let it be written, or the disk is full.
    """
    path = Path(path)
    part = Path(f"{path}.part")
    with system_errors(path, "written"):
        if path.exists() and not path.is_file():
            raise InputError(
                f"{path} is a folder or a device: expected the name of a file to "
                "write; choose another."
            )
        part.unlink(missing_ok=True)  # of a program that was stopped
        try:
            yield part
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def make_folder(path: Path | str) -> Path:
    """A folder to write into, made if it is not there, with those above it.

    Raises:
        InputError: a file is in its place, or the system doesn't let it be made.
    """
    path = as_path(path, "a folder")
    with system_errors(path, "written"):
        if path.is_file():
            raise InputError(
                f"{path} is a file: expected a folder to write into; choose another "
                "name."
            )
        path.mkdir(parents=True, exist_ok=True)
    return path


def write_json(document: dict[str, Any], path: Path | str) -> None:
    """Write a JSON object, aside first."""
    with written_aside(path) as part:
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
