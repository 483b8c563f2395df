"""Chapter 5: bugs on the way from a file to tiles, and what notices them."""

import io
from functools import cache
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from bugs import a_bug, a_check, replaced
from mllama_lite import tiles
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.tiles import CLIP_MEAN, CLIP_STD, canvases, image_to_tiles
from mllama_lite.vlm import load

ORIENTATION = 0x0112


@a_bug(
    "blue-first",
    "A picture's colours come as blue, green, red, as OpenCV reads them, and are taken "
    "for red, green, blue.",
    "tests/test_tiles.py::test_pixels_of_random_sizes",
)
def blue_first():
    right = image_to_tiles

    def wrong(image, *sizes):
        pixels = np.asarray(image.convert("RGB"))[:, :, ::-1]
        return right(Image.fromarray(np.ascontiguousarray(pixels)), *sizes)

    with replaced(image_to_tiles, wrong):
        yield


@a_bug(
    "no-antialias",
    "A picture is shrunk by plain bilinear interpolation, as PyTorch's `interpolate` does "
    "it unless told otherwise.",
    "tests/test_tiles.py::test_pixels_of_random_sizes",
)
def no_antialias():
    right = image_to_tiles

    def plain(image, size, *_):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
        pixels = F.interpolate(pixels, size[::-1], mode="bilinear")
        pixels = pixels[0].round().byte().permute(1, 2, 0)
        return Image.fromarray(pixels.numpy())

    def wrong(image, *sizes):
        with mock.patch.object(Image.Image, "resize", plain):
            return right(image, *sizes)

    with replaced(image_to_tiles, wrong):
        yield


@a_bug(
    "turned-twice",
    "A picture is turned by its EXIF tag and keeps the tag, so that whoever opens it again "
    "turns it again.",
    "tests/test_tiles.py::test_a_picture_that_was_opened_may_be_opened_again",
)
def turned_twice():
    right = ImageOps.exif_transpose

    def wrong(image, *, in_place=False):
        tag = image.getexif().get(ORIENTATION, 1)
        right(image, in_place=True)
        image.getexif()[ORIENTATION] = tag

    with mock.patch.object(tiles, "ImageOps", SimpleNamespace(exif_transpose=wrong)):
        yield


def noise(height, width, grey=False):
    """Pixels of no order, [height, width, 3]: whatever is exchanged shows."""
    shape = (height, width, 1 if grey else 3)
    values = np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)
    return np.broadcast_to(values, (height, width, 3)).copy()


def by_hand(pixels, rows, columns, side):
    """Tiles [rows·columns, 3, S, S] of pixels that need no resizing, one by one."""
    made = torch.empty(rows * columns, 3, side, side)
    for down in range(rows * side):
        for across in range(columns * side):
            inside = down < len(pixels) and across < pixels.shape[1]
            tile = down // side * columns + across // side
            for colour in range(3):
                level = int(pixels[down, across, colour]) if inside else 0
                value = (level / 255 - CLIP_MEAN[colour]) / CLIP_STD[colour]
                made[tile, colour, down % side, across % side] = value
    return made


def halved(pixels):
    """At half the size: along a line, a pixel sees four, by 1, 3, 3 and 1 parts.

    At the ends there are three; the parts of the fourth are not there.
    """
    for _ in range(2):  # down, then across
        lines, count = pixels.astype(float), len(pixels)
        made = []
        for place in range(0, count, 2):
            sees = {place - 1: 1, place: 3, place + 1: 3, place + 2: 1}
            sees = {i: part for i, part in sees.items() if 0 <= i < count}
            mixed = sum(part * lines[i] for i, part in sees.items())
            made.append(mixed / sum(sees.values()))
        pixels = np.stack(made).transpose(1, 0, 2)
    return pixels


@a_check("shapes, ids, and zeros in missing tiles, on all canvases")
def shapes():
    for place, (rows, columns) in enumerate(canvases()):
        image = Image.fromarray(noise(rows * 14, columns * 14 - 5))
        made = tiles.image_to_tiles(image, 14)
        assert made.pixel_values.shape == (4, 3, 14, 14)
        assert made.aspect_ratio_id == place + 1
        assert made.canvas == (rows, columns) and made.num_tiles == rows * columns
        assert not made.pixel_values[rows * columns :].any()


def largest_difference(pixels, want, canvas):
    made = tiles.image_to_tiles(Image.fromarray(pixels), 14)
    assert made.canvas == canvas
    return (made.pixel_values[: made.num_tiles] - want).abs().max().item()


@a_check("a grey picture that fits, value by value")
def grey_that_fits():
    pixels = noise(20, 25, grey=True)
    assert largest_difference(pixels, by_hand(pixels, 2, 2, 14), (2, 2)) < 1e-5


@a_check("a coloured picture that fits, value by value")
def coloured_that_fits():
    pixels = noise(20, 25)
    assert largest_difference(pixels, by_hand(pixels, 2, 2, 14), (2, 2)) < 1e-5


@a_check("a grey picture that is halved, to one level of 255")
def grey_that_is_halved():
    pixels = noise(56, 48, grey=True)
    want = by_hand(halved(pixels).round().astype(np.uint8), 2, 2, 14)
    assert largest_difference(pixels, want, (2, 2)) < 1.5 / 255 / min(CLIP_STD)


@a_check("a picture stored on its side is upright when opened")
def upright():
    assert np.array_equal(tiles.open_image(on_its_side()), noise(10, 20))


@a_check("opened a second time, it is still upright")
def upright_again():
    again = tiles.open_image(tiles.open_image(on_its_side()))
    assert np.array_equal(again, noise(10, 20))


def on_its_side():
    """A file of which a viewer shows noise(10, 20)."""
    file, exif = io.BytesIO(), Image.Exif()
    exif[ORIENTATION] = 6  # a quarter clockwise to view
    Image.fromarray(noise(10, 20)).rotate(90, expand=True).save(file, "PNG", exif=exif)
    return file.getvalue()


@cache
def shipped():
    return load(dtype="float32", device="cpu")


@a_check("the shipped model reads the digits of its picture")
def reads_digits():
    picture = find_folder() / "pictures" / "digits.png"
    question = "Read the digits from left to right."
    assert shipped().ask(question, picture) == "3 1 9"
