# Generated from notebooks/05_tiles.ipynb: edit there, or here and run `make update`.
"""From an image of any size to at most four square tiles.

Built in chapter 5, notebooks/05_tiles.ipynb. `open_image` shows what a viewer would
show; `image_to_tiles` does exactly what Meta's code does.
"""

import io
import math
import warnings
from dataclasses import dataclass
from os import PathLike

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from mllama_lite.errors import InputError


# Mean and standard deviation of red, green, blue over CLIP's training images, 0 to 1.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def canvases(max_tiles: int = 4) -> list[tuple[int, int]]:
    """All arrangements of at most `max_tiles` tiles, as (rows, columns).

    The place in this list plus one is the `aspect_ratio_id`; 0 means no image.

    Source: llama_models/llama3/multimodal/image_transform.py,
    `find_supported_resolutions`; the order is that of the hub's checkpoints.
    """
    sides = range(1, max_tiles + 1)
    pairs = [(rows, columns) for rows in sides for columns in sides]
    return [(rows, columns) for rows, columns in pairs if rows * columns <= max_tiles]


def choose_canvas(
    height: int, width: int, tile_size: int, max_tiles: int = 4
) -> tuple[int, int]:
    """The canvas on which an image is enlarged least, or else shrunk least.

    Args:
        height, width: of the image, in pixels.
        tile_size: side of a tile, in pixels.
        max_tiles: K.

    Returns:
        (rows, columns). Among equal scales the smallest area wins.

    Source: llama_models/llama3/multimodal/image_transform.py, `get_best_fit`, which
    divides in fp32; so does this. Rounding decides only above 2 million pixels a side.
    """
    options = canvases(max_tiles)
    sides = np.array(options, dtype=np.float32) * np.float32(tile_size)  # [options, 2]
    scales = (sides / np.array([height, width], dtype=np.float32)).min(axis=1)
    enlarging = scales[scales >= 1]
    best = enlarging.min() if len(enlarging) else scales.max()
    tied = [option for option, scale in zip(options, scales) if scale == best]
    return min(tied, key=lambda option: option[0] * option[1])


def resized_size(
    height: int, width: int, canvas: tuple[int, int], tile_size: int
) -> tuple[int, int]:
    """Size to which an image is scaled before it is pasted on its canvas.

    The image is not enlarged beyond one tile: a side grows to at most the larger of
    itself and the tile.

    Args:
        height, width: of the image, in pixels.
        canvas: (rows, columns).
        tile_size: side of a tile, in pixels.

    Returns:
        (height, width) in pixels, each at least 1. (Meta's code yields 0 for images
        thinner than one in 4 tiles' pixels and then fails.)

    Source: llama_models/llama3/multimodal/image_transform.py,
    `resize_without_distortion` and `get_max_res_without_distortion`.
    """
    target_height = min(max(height, tile_size), canvas[0] * tile_size)
    target_width = min(max(width, tile_size), canvas[1] * tile_size)
    scale_height, scale_width = target_height / height, target_width / width
    if scale_width < scale_height:
        new_height = min(math.floor(height * scale_width), target_height)
        return max(1, new_height), target_width
    new_width = min(math.floor(width * scale_height), target_width)
    return target_height, max(1, new_width)


@dataclass(frozen=True)
class Tiles:
    """One image as the vision encoder takes it.

    Attributes:
        pixel_values: fp32 [K, 3, S, S], normalised; missing tiles are exactly 0.
        aspect_ratio_id: 1 to 8, the place of `canvas` in `canvases()` plus one.
        canvas: (rows, columns); the first rows·columns tiles are valid, row by row.
    """

    pixel_values: torch.Tensor
    aspect_ratio_id: int
    canvas: tuple[int, int]

    @property
    def num_tiles(self) -> int:
        """How many tiles carry image or padding around it."""
        return self.canvas[0] * self.canvas[1]


def image_to_tiles(image: Image.Image, tile_size: int, max_tiles: int = 4) -> Tiles:
    """Resize, pad, normalise and cut an image as Meta's code does.

    Args:
        image: PIL image of any mode; converted to RGB as it is (alpha is dropped).
        tile_size: side of a tile in pixels: 448 or 560 in the published models.
        max_tiles: K.

    Returns:
        Tiles.

    Source: llama_models/llama3/multimodal/image_transform.py,
    `VariableSizeImageTransform.__call__`.
    """
    image = image.convert("RGB")
    canvas = choose_canvas(image.height, image.width, tile_size, max_tiles)
    height, width = resized_size(image.height, image.width, canvas, tile_size)
    rows, columns = canvas
    padded = Image.new("RGB", (columns * tile_size, rows * tile_size))  # black
    padded.paste(image.resize((width, height), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(np.array(padded)).float() / 255
    pixels = pixels.permute(2, 0, 1)  # [3, rows·S, columns·S]
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    cut = pixels.unflatten(1, (rows, tile_size)).unflatten(3, (columns, tile_size))
    tiles = cut.permute(1, 3, 0, 2, 4).flatten(0, 1)  # [rows·columns, 3, S, S]
    pixel_values = torch.zeros(max_tiles, 3, tile_size, tile_size)  # [K, 3, S, S]
    pixel_values[: len(tiles)] = tiles
    return Tiles(pixel_values, canvases(max_tiles).index(canvas) + 1, canvas)


PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def is_picture_name(text: str) -> bool:
    """Whether a text is surely meant as the name of a picture: one word that ends so."""
    return text.lower().endswith(PICTURE_ENDINGS) and len(text.split()) == 1


def open_image(source):
    """Read an image and make it RGB the way a picture viewer would show it.

    Rotation from EXIF is applied, transparency is laid on white, 16-bit values are
    scaled to 8, of an animation the first frame is taken. Colour profiles are not
    applied.

    Args:
        source: a path, the bytes of a file, a binary file object, or a PIL image.

    Returns:
        PIL image, mode RGB.

    Raises:
        InputError: no such file, empty, truncated, not an image, or more pixels than
            Pillow allows (`PIL.Image.MAX_IMAGE_PIXELS`, against decompression bombs).
    """
    if isinstance(source, Image.Image):
        return _as_shown(source, "The image")
    name = f"The image {source}" if isinstance(source, (str, PathLike)) else "The image"
    if isinstance(source, (bytes, bytearray)):
        source = io.BytesIO(source)
    if not isinstance(source, (str, PathLike)) and not hasattr(source, "read"):
        raise InputError(
            f"An image is a {type(source).__name__}: expected a path, bytes, a file or "
            "a PIL image; open it first."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image = Image.open(source)
        except Exception as error:  # Pillow's readers raise many kinds
            raise _unusable(name, error) from None
        with image:
            return _as_shown(image, name)


def _unusable(name, error):
    """The InputError that says why an image could not be opened or decoded."""
    if isinstance(error, FileNotFoundError):
        return InputError(
            f"{name} does not exist: expected the path of an image file; check the "
            "name."
        )
    if isinstance(error, UnidentifiedImageError):
        return InputError(
            f"{name} is empty or no image that Pillow knows: expected a JPEG, PNG, "
            "WebP, GIF, BMP or TIFF file; convert it."
        )
    bombs = (Image.DecompressionBombError, Image.DecompressionBombWarning)
    if isinstance(error, bombs):
        return InputError(
            f"{name} has more than {Image.MAX_IMAGE_PIXELS} pixels: expected fewer, as "
            "a guard against decompression bombs; make it smaller or raise "
            "PIL.Image.MAX_IMAGE_PIXELS."
        )
    if isinstance(error, OSError) and error.strerror:
        return InputError(
            f"{name} cannot be read ({error.strerror}): expected a readable image "
            "file; check the path."
        )
    return InputError(
        f"{name} is truncated or damaged ({error or type(error).__name__}): expected a "
        "complete file; copy it again."
    )


def _as_shown(image, name):
    """`image` in RGB, as a viewer shows it."""
    try:
        image.seek(0)
        image.load()
    except Exception as error:
        raise _unusable(name, error) from None
    # Pillow takes LAB for RGB and cannot convert La, premultiplied grey, at all.
    if 0 in image.size or image.mode in ("LAB", "La"):
        raise InputError(
            f"{name} has {image.width} x {image.height} pixels of mode {image.mode}: "
            "expected at least one pixel and a mode like RGB; convert it."
        )
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # EXIF that nobody can read turns nothing
        pass
    if image.mode.startswith("I") or image.mode == "F":
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        # Some readers give 16-bit files as I; there, values up to 255 stay.
        wide = image.mode.startswith("I;16") or image.mode == "I" and values.max() > 255
        values = (values / (257 if wide else 1)).clip(0, 255).round()
        image = Image.fromarray(values.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
