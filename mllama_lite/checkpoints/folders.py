# Generated from notebooks/15_files.ipynb: edit there, or here and run `make update`.
"""A model's folder: which layout it has, which files, and its configuration.

Built in chapter 15, notebooks/15_files.ipynb. No name that a file gives is opened before
it was held against what such a name may be.
"""

import re
from pathlib import Path

from mllama_lite.checkpoints.configs import config_from_hub, config_from_meta
from mllama_lite.errors import InputError, shown
from mllama_lite.files import (
    ANY_TEXT,
    as_path,
    check_fields,
    damaged_file,
    exists,
    is_folder,
    object_of,
    read_json,
    system_errors,
)
from mllama_lite.model import MllamaConfig


INDEX = "model.safetensors.index.json"
MOST_INDEX = 1 << 24  # bytes; the 90B's has some 150 thousand


def read_index(folder: Path) -> dict[str, str]:
    """Which file of a folder each tensor is in, in the hub's layout.

    Raises:
        InputError: the index is damaged, or names something that is not a .safetensors
            file of this very folder.
    """
    path = folder / INDEX
    entries = {"weight_map": object_of(ANY_TEXT, 1_000_000)}
    places = check_fields(read_json(path, MOST_INDEX), entries, path)["weight_map"]
    for tensor, name in places.items():
        if not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise InputError(
                f"{path} says that {tensor} is in {shown(name)}: expected the name of a "
                ".safetensors file beside it; download the model again."
            )
    if not places:
        raise damaged_file(path, "it names no tensors")
    return places


def find_files(folder: Path | str) -> tuple[str, list[Path]]:
    """Which layout a folder has, and its files.

    Args:
        folder: path.

    Returns:
        ("hub", list of .safetensors) or ("meta", list of .pth).

    Raises:
        InputError: no such folder, no weights in it, a shard is missing, or an index
            that leads out of the folder.
    """
    folder = as_path(folder, "a model's folder")
    if not is_folder(folder):
        raise InputError(
            f"There is no folder {folder}: expected one with a model, or a hub id "
            "such as meta-llama/Llama-3.2-11B-Vision-Instruct; check the name."
        )
    with system_errors(folder, "read"):
        files = sorted(folder.glob("consolidated*.pth"))
    if exists(folder / INDEX):
        names = sorted(set(read_index(folder).values()))
        for name in names:
            if not exists(folder / name):
                raise InputError(
                    f"{folder} lacks {name}, which its index names: expected "
                    f"{len(names)} shards; download the missing ones."
                )
        return "hub", [folder / name for name in names]
    if exists(folder / "model.safetensors"):
        return "hub", [folder / "model.safetensors"]
    if files:
        names = [file.name for file in files]
        numbered = [f"consolidated.{i:02}.pth" for i in range(len(files))]
        if names not in (["consolidated.pth"], numbered):
            raise InputError(
                f"{folder} has {', '.join(names)}: expected consolidated.pth, or "
                "consolidated.00.pth and so on; download what is missing."
            )
        return "meta", files
    raise InputError(
        f"{folder} has no weights: expected model.safetensors (or its index) or "
        "consolidated*.pth; point to the folder that holds them."
    )


def read_config(folder: Path | str) -> MllamaConfig:
    """Configuration of a model's folder.

    Args:
        folder: with a `config.json` (hub) or else a `params.json` (Meta).

    Returns:
        MllamaConfig.

    Raises:
        InputError: neither file is there, or one that is of another architecture, or
            whose entries are not what they should be.
    """
    folder = as_path(folder, "a model's folder")
    for name, reader in {
        "config.json": config_from_hub,
        "params.json": config_from_meta,
    }.items():
        if exists(folder / name):
            return reader(read_json(folder / name), folder / name)
    if not is_folder(folder):
        find_files(folder)
    raise InputError(
        f"{folder} has no configuration: expected config.json (hub) or params.json "
        "(Meta); download it beside the weights."
    )
