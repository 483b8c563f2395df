# Generated from notebooks/09_checkpoint.ipynb: edit there, or here and run `make update`.
"""Files from others, read with care, and files of our own, written aside first.

Built in chapter 9, notebooks/09_checkpoint.ipynb. Whatever the system refuses, such as
a file without permission or a full disk, becomes an InputError here and nowhere else.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from mllama_lite.errors import InputError


def damaged_file(path: Path | str, what: str) -> InputError:
    """The error for a file that does not hold what its format promises."""
    return InputError(
        f"{path} is truncated or damaged ({what}): expected a complete file; download "
        "it again."
    )


@contextmanager
def system_errors(path: Path | str, doing: str) -> Iterator[None]:
    """Within a `with` block: what the system refuses becomes an InputError.

    Args:
        path: of the file or folder that it is about.
        doing: "read" or "written".
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
    except RuntimeError as error:
        if "inline_container" not in str(error):  # where torch.save writes
            raise
        reason = "not all of it could be written; the disk may be full"
    except ValueError as error:
        if "null byte" not in str(error):
            raise
        reason = "no file has such a name"
    else:
        return
    raise InputError(
        f"{path} cannot be {doing} ({reason}): expected a file that can; check its "
        "name, its permissions and the disk."
    ) from None


def read_json(path: Path) -> dict[str, Any]:
    """Parse a JSON file that has to be an object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise damaged_file(path, "it is not a JSON object") from None
    return document


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
    with system_errors(path, "written"):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def write_json(document: dict[str, Any], path: Path | str) -> None:
    """Write a JSON object, aside first."""
    with written_aside(path) as part:
        part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
