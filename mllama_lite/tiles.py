# Generated from notebooks/05_tiles.ipynb: edit there, or here and run `make update`.
"""From an image of any size to at most four square tiles.

Built in chapter 5, notebooks/05_tiles.ipynb. `open_image` shows what a viewer would
show; `image_to_tiles` does exactly what Meta's code does.
"""

import io
import math
import os
import stat
import warnings
from dataclasses import dataclass
from os import PathLike
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

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
    # Here, whatever the program's default device and dtype are.
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device="cpu")
        for values in (CLIP_MEAN, CLIP_STD)
    )
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    cut = pixels.unflatten(1, (rows, tile_size)).unflatten(3, (columns, tile_size))
    tiles = cut.permute(1, 3, 0, 2, 4).flatten(0, 1)  # [rows·columns, 3, S, S]
    shape = max_tiles, 3, tile_size, tile_size  # [K, 3, S, S]
    pixel_values = torch.zeros(shape, dtype=torch.float32, device="cpu")
    pixel_values[: len(tiles)] = tiles
    return Tiles(pixel_values, canvases(max_tiles).index(canvas) + 1, canvas)


PICTURE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".avif",
    ".heic",
    ".heif",
)


def is_picture_name(text: str) -> bool:
    """Whether a text is surely meant as the name of a picture: one word that ends so."""
    return text.lower().endswith(PICTURE_ENDINGS) and len(text.split()) == 1


# HEIF is there once pillow_heif has registered it. No other reader of Pillow is meant,
# least of all the one of EPS, which starts an outside program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "HEIF")
# Of a picture the published models see 1.25 million pixels (4 tiles of 560 x 560). A
# camera of 64 megapixels, a panorama and any side of a JPEG stay below these.
MOST_PIXELS = 2**26
LONGEST_SIDE = 2**16 - 1
MOST_BYTES = 2**28
MOST_SCANS = 500  # of a progressive JPEG; encoders write about ten


Picture = str | PathLike | bytes | bytearray | BinaryIO | Image.Image


def open_image(source: Picture) -> Image.Image:
    """Read an image and make it RGB the way a picture viewer would show it.

    Rotation from EXIF is applied, transparency is laid on white, 16-bit values are
    scaled to 8, of an animation the first frame is taken. Colour profiles are not
    applied.

    Args:
        source: a path, the bytes of a file, a binary file object, or a PIL image. Files
            are read as FORMATS and nothing else; what a PIL image was opened as is the
            caller's choice.

    Returns:
        PIL image, mode RGB.

    Raises:
        InputError: no such file, no regular file, empty, truncated, none of FORMATS, or
            more than MOST_PIXELS pixels, LONGEST_SIDE pixels on a side or MOST_BYTES
            bytes. Sizes are looked at before pixels are decoded.
    """
    if isinstance(source, Image.Image):
        return _as_shown(source, "The image")
    name = f"The image {source}" if isinstance(source, (str, PathLike)) else "The image"
    Image.init()
    formats = [kind for kind in FORMATS if kind in Image.OPEN]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Pillow; what matters is said below
        try:
            image = Image.open(io.BytesIO(_read(source, name)), formats=formats)
        except InputError:
            raise
        except Exception as error:  # Pillow's readers raise many kinds
            raise _unusable(name, error) from None
        with image:
            return _as_shown(image, name)


def _read(source: object, name: str) -> bytes | bytearray:
    """All bytes of an image file, if it can be one."""
    data: object = source
    if isinstance(source, (str, PathLike)):
        # A pipe would be waited for, a device could go on for ever.
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise InputError(
                f"{name} is no regular file: expected an image file, no folder, pipe or "
                "device; check the path."
            )
        with open(source, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    elif hasattr(source, "read"):
        if hasattr(source, "seek"):
            source.seek(0)
        data = source.read(MOST_BYTES + 1)
    if not isinstance(data, (bytes, bytearray)):
        raise InputError(
            f"An image is a {type(source).__name__}: expected a path, bytes, a binary "
            "file or a PIL image; open it first."
        )
    if len(data) > MOST_BYTES:
        raise InputError(
            f"{name} has more than {MOST_BYTES >> 20} MiB: expected a smaller file; make "
            "the picture smaller."
        )
    # Each scan passes over the whole picture, however few bytes it has.
    if data[:2] == b"\xff\xd8" and data.count(b"\xff\xda") > MOST_SCANS:
        raise InputError(
            f"{name} is a JPEG of more than {MOST_SCANS} scans: expected fewer, as a "
            "guard against files that take hours; save it anew."
        )
    return data


def _unusable(name: str, error: Exception) -> InputError:
    """The InputError that says why an image could not be opened or decoded."""
    if isinstance(error, FileNotFoundError):
        return InputError(
            f"{name} does not exist: expected the path of an image file; check the "
            "name."
        )
    if isinstance(error, UnidentifiedImageError):
        kinds = ", ".join(kind for kind in FORMATS if kind in Image.OPEN)
        return InputError(
            f"{name} is empty or of no format that is read here: expected one of {kinds}; "
            "convert it."
        )
    if isinstance(error, Image.DecompressionBombError):
        return _too_large(name, "a size that Pillow refuses")
    if isinstance(error, MemoryError):
        return _too_large(name, "more pixels than memory has room for")
    if isinstance(error, OSError) and error.strerror:
        return InputError(
            f"{name} cannot be read ({error.strerror}): expected a readable image "
            "file; check the path."
        )
    return InputError(
        f"{name} is truncated or damaged ({error or type(error).__name__}): expected a "
        "complete file; copy it again."
    )


def _too_large(name: str, size: str) -> InputError:
    return InputError(
        f"{name} has {size}: expected at most {MOST_PIXELS} pixels and {LONGEST_SIDE} on "
        "a side, of which the tiles keep far fewer; make it smaller."
    )


def _as_shown(image: Image.Image, name: str) -> Image.Image:
    """`image` in RGB, as a viewer shows it."""
    try:
        image.seek(0)
    except Exception as error:
        raise _unusable(name, error) from None
    width, height = image.size
    # Pillow takes LAB for RGB and cannot convert La, premultiplied grey, at all.
    if 0 in image.size or image.mode in ("LAB", "La"):
        raise InputError(
            f"{name} has {width} x {height} pixels of mode {image.mode}: expected at "
            "least one pixel and a mode like RGB; convert it."
        )
    if width * height > MOST_PIXELS or max(image.size) > LONGEST_SIDE:
        raise _too_large(name, f"{width} x {height} pixels")
    try:
        image.load()
        seen = _in_colour(image)
        seen.getexif()[ExifTags.Base.Orientation] = _orientation(image)
        ImageOps.exif_transpose(seen, in_place=True)
    except Exception as error:
        raise _unusable(name, error) from None
    return seen


def _orientation(image: Image.Image) -> int:
    """How the picture lies, 1 to 8; EXIF that nobody can read turns nothing."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in range(1, 9) else 1
    except Exception:
        return 1


def _in_colour(image: Image.Image) -> Image.Image:
    """8-bit RGB on white, made a band of rows at a time: what lies between needs room."""
    # Some readers give 16-bit files as I; there, values up to 255 stay.
    wide = image.mode.startswith("I;16")
    wide = wide or image.mode == "I" and np.max(image.getextrema()) > 255
    seen = Image.new("RGB", image.size)
    rows = max(1, 2**20 // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        band = image.crop(box)
        if band.mode.startswith("I") or band.mode == "F":
            values = np.nan_to_num(np.asarray(band, dtype=np.float64))
            values = (values / (257 if wide else 1)).clip(0, 255).round()
            band = Image.fromarray(values.astype(np.uint8))
        if band.has_transparency_data:
            band = band.convert("RGBA")
            white = Image.new("RGBA", band.size, "white")
            band = Image.alpha_composite(white, band)
        seen.paste(band.convert("RGB"), box)
    return seen
