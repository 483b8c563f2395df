# Generated from notebooks/09_checkpoint.ipynb: edit there, or here and run `make update`.
"""Where a model is: a folder, the hub, or the package itself.

Built in chapter 9, notebooks/09_checkpoint.ipynb.
"""

import re
from importlib import resources
from pathlib import Path

from mllama_lite.errors import InputError
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


def download(model_id, files=HUB_FILES):
    """Fetch a model from the hub, or find it where it was fetched to before.

    Args:
        model_id: "organisation/name".
        files: patterns of the names to fetch; a configuration alone is small.

    Returns:
        path of the folder.

    Raises:
        InputError: huggingface_hub is not installed; no such model; no access to it; no
            network.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise InputError(
            f"{model_id} is on the hub, and huggingface_hub is not installed: expected "
            "the extra for downloads; run pip install 'mllama-lite[hub]'."
        ) from None
    try:
        return Path(huggingface_hub.snapshot_download(model_id, allow_patterns=files))
    except (errors.GatedRepoError, errors.RepositoryNotFoundError):
        raise InputError(
            f"The hub gives no access to {model_id}, and there is no such folder here: "
            "expected a model that exists and whose licence you have accepted; accept "
            "it on the model's page and run hf auth login."
        ) from None
    except errors.HFValidationError:
        raise InputError(
            f"{model_id!r} is no hub id: expected organisation/name; correct it."
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError):
        raise InputError(
            f"The hub cannot be reached for {model_id}, which was not downloaded before "
            "and is no folder here: expected a network connection; connect, or give the "
            "path of a folder."
        ) from None


def find_folder(model=None, files=HUB_FILES):
    """The folder of a model: itself, or where the hub's files were downloaded to.

    Args:
        model: path of a folder, or a hub id; None for the model that the package ships.
        files: see `download`.
    """
    if model is None:
        return Path(str(resources.files("mllama_lite"))) / "small"
    if Path(model).is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        return Path(model)
    return download(str(model), files)


def find_tokenizer(folder):
    """The Tokenizer of a folder, or None if it has no file of one."""
    for name in ("tokenizer.model", "original/tokenizer.model", "tokenizer.json"):
        if (folder / name).is_file():
            return Tokenizer.from_file(folder / name)
    return None
