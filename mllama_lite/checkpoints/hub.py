# Generated from notebooks/15_files.ipynb: edit there, or here and run `make update`.
"""Where a model is: a folder, the hub, or the package itself.

Built in chapter 15, notebooks/15_files.ipynb.
"""

import errno
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from types import ModuleType

from mllama_lite.errors import InputError, shown
from mllama_lite.files import as_path, exists, is_folder, system_errors
from mllama_lite.tokenizer import Tokenizer


HUB_FILES = [
    "config.json",
    "params.json",
    "tokenizer.json",
    "tokenizer.model",
    "original/tokenizer.model",
    "model*.safetensors",
    "model.safetensors.index.json",
]


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


def download(model_id: str, files: Sequence[str] = HUB_FILES) -> Path:
    """Fetch a model from the hub, or find it where it was fetched to before.

    Args:
        model_id: "organisation/name".
        files: patterns of the names to fetch; a configuration alone is small.

    Returns:
        path of the folder.

    Raises:
        InputError: huggingface_hub is not installed; no such model; no access to it; no
            network; no room or no permission to keep it here.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors, utils
    except ImportError:
        raise InputError(
            f"{model_id} is on the hub, and huggingface_hub is not installed: expected "
            "the extra for downloads; run pip install 'mllama-lite[hub]'."
        ) from None
    try:
        with _quiet(utils):
            folder = Path(
                huggingface_hub.snapshot_download(model_id, allow_patterns=list(files))
            )
    except (errors.GatedRepoError, errors.RepositoryNotFoundError):
        raise InputError(
            f"The hub gives no access to {model_id}, and there is no such folder here: "
            "expected a model that exists and whose licence you have accepted; accept "
            "it on the model's page and run hf auth login."
        ) from None
    except errors.HFValidationError:
        raise InputError(
            f"{shown(model_id)} is no hub id: expected organisation/name; correct it."
        ) from None
    except UnicodeEncodeError:
        raise InputError(
            f"The token for {model_id} cannot be sent to the hub: expected ASCII "
            "letters and digits alone; run hf auth login, or correct HF_TOKEN."
        ) from None
    except OSError as error:
        if error.filename or error.errno in NO_ROOM:
            with system_errors(f"The hub's cache of {model_id}", "written"):
                raise
        raise InputError(
            f"The hub cannot be reached for {model_id}, which was not downloaded before "
            "and is no folder here: expected a network connection; connect, or give the "
            "path of a folder."
        ) from None
    except Exception as error:  # an answer that is none can raise anything
        raise InputError(
            f"The hub's answer about {model_id} makes no sense ({error}): expected the "
            "list of a model's files; check HF_ENDPOINT and the proxy."
        ) from None
    if not any(exists(folder / name) for name in ("config.json", "params.json")):
        raise InputError(
            f"{model_id} on the hub has no configuration: expected config.json or "
            "params.json; choose a Llama 3 model."
        )
    return folder


@contextmanager
def _quiet(utils: ModuleType) -> Iterator[None]:
    """No words of the hub library's own, and its bars only where somebody looks."""
    level, bars = utils.logging.get_verbosity(), utils.are_progress_bars_disabled()
    utils.logging.set_verbosity(utils.logging.CRITICAL)
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        utils.logging.set_verbosity(level)
        if not bars:
            utils.enable_progress_bars()


def find_folder(
    model: Path | str | None = None, files: Sequence[str] = HUB_FILES
) -> Path:
    """The folder of a model: itself, or where the hub's files were downloaded to.

    Args:
        model: path of a folder, or a hub id; None for the model that the package ships.
        files: see `download`.

    Raises:
        InputError: see `download`; a model that is neither text nor a path.
    """
    if model is None:
        return Path(str(resources.files("mllama_lite"))) / "small"
    path = as_path(model, "a model's folder")
    if is_folder(path) or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        return path
    return download(str(model), files)


def find_tokenizer(folder: Path | str) -> Tokenizer | None:
    """The Tokenizer of a folder, or None if it has no file of one."""
    for name in ("tokenizer.model", "original/tokenizer.model", "tokenizer.json"):
        if exists(Path(folder) / name):
            return Tokenizer.from_file(Path(folder) / name)
    return None
