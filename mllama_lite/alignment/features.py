# Generated from notebooks/20_alignment.ipynb: edit there, or here and run `make update`.
"""What a frozen encoder sees, computed once and kept in a file that is mapped.

Built in chapter 20, notebooks/20_alignment.ipynb. An encoder that does not learn gives
the same numbers in every epoch. So each picture goes through it once, and the training
reads its patches from the disk as fp16.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from mllama_lite.errors import InputError
from mllama_lite.families.efficientnet import (
    EfficientNetConfig,
    fold_norms,
    load_efficientnet,
)
from mllama_lite.families.vit import load_vit, vit_config
from mllama_lite.files import (
    as_path,
    make_folder,
    read_bytes,
    system_errors,
    write_json,
)
from mllama_lite.tiles import open_image


INDEX, NUMBERS = "features.json", "features.bin"
LARGEST_PICTURE = 2**28  # bytes


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder and how it wants its pictures.

    Attributes:
        module: with `patches`, from [N, 3, S, S] to [N, P, D]; it is in eval mode.
        image_size: S.
        mean, std: of each channel; pixels are (value / 255 - mean) / std.
        checksum: of the weights.
    """

    module: Any
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksum: str

    def pixels(self, image: Image.Image) -> torch.Tensor:
        """An image in the middle of a white square, as fp32 [3, S, S]."""
        scale = self.image_size / max(image.size)
        size = [max(1, round(scale * length)) for length in image.size]
        if tuple(size) != image.size:
            image = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
        sheet = Image.new("RGB", (self.image_size, self.image_size), "white")
        left, top = ((self.image_size - length) // 2 for length in size)
        sheet.paste(image, (left, top))
        values = torch.from_numpy(np.array(sheet)).permute(2, 0, 1) / 255  # [3, S, S]
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return (values - mean[:, None, None]) / std[:, None, None]


def load_encoder(path: str | PathLike) -> Encoder:
    """EfficientNet-Lite0 or a vision transformer, by the names that a file has.

    Args:
        path: .safetensors, or what torch.save wrote.

    Returns:
        Encoder, with the pixels that its kind was trained with: EfficientNet's of its
        package; ImageNet's mean and deviation for torchvision's names; from -1 to 1 for
        timm's, whose ViT-B/16 wants that.

    Raises:
        InputError: the file cannot be read, or holds no such encoder.
    """
    path = as_path(path, "a file of weights")
    state = read_state(path)
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + state[name].contiguous().numpy().tobytes())
    checksum = digest.hexdigest()[:16]
    if "_conv_stem.weight" in state:
        model = load_efficientnet(state)
        fold_norms(model)
        size, pixel = EfficientNetConfig().image_size, (127 / 255,) * 3
        return Encoder(model, size, pixel, (128 / 255,) * 3, checksum)
    config = vit_config(state)
    imagenet = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    half = (0.5,) * 3, (0.5,) * 3
    mean, std = imagenet if "conv_proj.weight" in state else half
    return Encoder(load_vit(state, config), config.image_size, mean, std, checksum)


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, in fp32; nothing in it is run."""
    with system_errors(path, "read"):
        path.stat()
        try:
            if path.suffix == ".safetensors":
                state: Any = load_file(path)
            else:
                state = torch.load(path, "cpu", weights_only=True)
            if isinstance(state, nn.Module) or not isinstance(state, dict):
                raise TypeError(f"it holds a {type(state).__name__}")
            return {name: t.float() for name, t in state.items()}
        except OSError:
            raise
        except Exception as error:  # torch's reader raises many kinds
            raise InputError(
                f"{path} cannot be read ({type(error).__name__}): expected a dict of "
                "tensors, as safetensors or torch.save writes it; get it again."
            ) from None


class Features:
    """What an encoder saw in some pictures.

    Args:
        folder: that `encode` wrote.

    Attributes:
        numbers: fp16 [N, P, D], mapped.
        row: dict from a picture's path to its number.
        checksum: of encoder and pictures.

    Raises:
        InputError: the folder holds no features, or not all.
    """

    def __init__(self, folder: str | PathLike) -> None:
        folder = Path(folder)
        index = _index(folder)
        if index is None or index["done"] != len(index["pictures"]):
            raise InputError(
                f"{folder} holds no features, or not all of them: expected what encode "
                "wrote; encode the pictures again."
            )
        shape = (index["done"], *index["shape"])
        path = folder / NUMBERS
        with system_errors(path, "read"):
            there = path.stat().st_size
            if there != 2 * int(np.prod(shape)):
                raise InputError(
                    f"{path} has {there} bytes: expected {2 * int(np.prod(shape))}, as "
                    "the index says; encode the pictures again."
                )
            self.numbers = np.memmap(path, np.float16, "r", shape=shape)
        self.row = {name: i for i, name in enumerate(index["pictures"])}
        whole = json.dumps([index["encoder"], index["sums"]])
        self.checksum = hashlib.sha256(whole.encode()).hexdigest()[:16]

    @property
    def size(self) -> int:
        """D."""
        return self.numbers.shape[2]

    def of(self, paths: Sequence[Path]) -> torch.Tensor:
        """The patches of some pictures, fp32 [N, P, D]."""
        rows = [self.numbers[self.row[str(path)]] for path in paths]
        return torch.from_numpy(np.stack(rows).astype(np.float32))


def encode(
    pictures: Iterable[Path],
    encoder: Encoder,
    folder: str | PathLike,
    batch: int = 16,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], object] | None = None,
) -> Features:
    """Look at every picture once; what an earlier call has looked at is kept.

    Args:
        pictures: paths; one that stands there twice is looked at once.
        encoder: Encoder.
        folder: where to write; made if it is not there.
        batch: pictures at once.
        device: torch device or its name.
        progress: called with how many are done, and of how many, after every batch.

    Returns:
        Features.

    Raises:
        InputError: a picture cannot be read; the folder cannot be written.
    """
    folder = make_folder(as_path(folder, "a folder for features"))
    sums = {}
    for path in pictures:
        if str(path) not in sums:
            data = read_bytes(path, LARGEST_PICTURE)
            sums[str(path)] = hashlib.sha256(data).hexdigest()[:16]
    wanted = {"encoder": encoder.checksum, "sums": list(sums.values())}
    index = _index(folder)
    if index is None or any(index[key] != wanted[key] for key in wanted):
        index = {**wanted, "shape": [0, 0], "done": 0}
    index["pictures"] = list(sums)  # which may lie elsewhere now
    write_json(index, folder / INDEX)
    names, path = list(sums), folder / NUMBERS
    module = encoder.module.to(device)
    with (
        system_errors(path, "written"),
        open(path, "r+b" if index["done"] else "wb") as file,
    ):
        while index["done"] < len(names):
            some = names[index["done"] : index["done"] + batch]
            pixels = torch.stack([encoder.pixels(open_image(name)) for name in some])
            with torch.inference_mode():
                seen = module.patches(pixels.to(device)).cpu().half().numpy()
            size = 2 * int(np.prod(seen.shape[1:]))
            file.seek(index["done"] * size)
            file.write(seen.tobytes())
            file.flush()
            index["shape"], index["done"] = (
                list(seen.shape[1:]),
                index["done"] + len(some),
            )
            write_json(index, folder / INDEX)
            if progress:
                progress(index["done"], len(names))
    return Features(folder)


def _index(folder: Path) -> dict[str, Any] | None:
    """What the index of a folder says, if it has one that can be used."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        fits = (
            isinstance(index["encoder"], str)
            and isinstance(index["pictures"], list)
            and len(index["sums"]) == len(index["pictures"])
            and type(index["done"]) is int
            and 0 <= index["done"] <= len(index["pictures"])
            and [type(n) for n in index["shape"]] == [int, int]
            and (folder / NUMBERS).is_file()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return index if fits else None
