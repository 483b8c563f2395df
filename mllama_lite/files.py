# Generated from notebooks/09_checkpoint.ipynb: edit there, or here and run `make update`.
"""Small files, read with care and written aside before they are renamed.

Built in chapter 9, notebooks/09_checkpoint.ipynb.
"""

import json
import os

from mllama_lite.errors import InputError


def damaged_file(path, what):
    """The error for a file that does not hold what its format promises."""
    return InputError(
        f"{path} is truncated or damaged ({what}): expected a complete file; download "
        "it again."
    )


def read_json(path):
    """Parse a JSON file that has to be an object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise damaged_file(path, "it is not a JSON object") from None
    return document


def write_json(document, path):
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)
