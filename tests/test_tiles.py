"""Tiles against Meta's transform and transformers' processor; opening odd files."""

import io
import random
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from matplotlib import cbook
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

import reference
from mllama_lite import tiles
from mllama_lite.errors import InputError
from mllama_lite.tiles import (
    CLIP_MEAN,
    CLIP_STD,
    canvases,
    choose_canvas,
    image_to_tiles,
    open_image,
    resized_size,
)


@pytest.fixture(scope="module")
def transform():
    reference.start_meta()
    from llama_models.llama3.multimodal.image_transform import (
        VariableSizeImageTransform,
    )

    return VariableSizeImageTransform


def photographs():
    """Real photographs that come with scikit-learn and matplotlib."""
    pictures = [Image.fromarray(picture) for picture in load_sample_images().images]
    for name in ("grace_hopper.jpg", "Minduka_Present_Blue_Pack.png", "logo2.png"):
        with Image.open(cbook.get_sample_data(name)) as picture:
            pictures.append(picture.convert("RGB"))
    return pictures


def variants(picture):
    """The photograph, shrunk, cropped to extreme shapes, turned."""
    width, height = picture.size
    return [
        picture,
        picture.transpose(Image.Transpose.ROTATE_90),
        picture.resize((width // 3, height // 3)),
        picture.crop((0, 0, width, 60)),
        picture.crop((0, 0, width, 60)).resize((2400, 400)),
        picture.crop((0, 0, 37, height)),
        picture.crop((0, 0, 37, height)).resize((300, 2400)),
        picture.resize((400, 1300)),
        picture.resize((width * 3, height * 2)),
    ]


@pytest.mark.parametrize("side", [448, 560])
def test_pixels_of_photographs(transform, proof, side):
    meta, worst, used = transform(size=side), 0.0, set()
    pictures = [variant for picture in photographs() for variant in variants(picture)]
    for picture in pictures:
        theirs, arrangement = meta(picture, max_num_chunks=4)
        ours = image_to_tiles(picture, side)
        assert (
            ours.canvas == arrangement
            and ours.aspect_ratio_id == canvases().index(arrangement) + 1
        )
        worst = max(
            worst, (ours.pixel_values[: ours.num_tiles] - theirs).abs().max().item()
        )
        assert not ours.pixel_values[ours.num_tiles :].any()
        used.add(ours.canvas)
    assert used == set(canvases())
    proof(
        f"Image tiles of {side} pixels, pixel values",
        "Meta",
        f"{len(pictures)} photographs",
        worst,
        0,
    )


def sizes(count, seed):
    """Random sizes of images, many near the borders between canvases."""
    rng = random.Random(seed)
    for i in range(count):
        if i % 3 == 0:
            yield rng.randrange(1, 6000), rng.randrange(1, 6000)
        elif i % 3 == 1:
            base = rng.choice([224, 280, 448, 560, 1120, 1680, 2240])
            near = [
                max(
                    1,
                    base * rng.choice([1, 2, 3, 4]) // rng.choice([1, 2, 3, 4])
                    + rng.randrange(-1, 2),
                )
            ]
            yield near[0], max(1, base + rng.randrange(-2, 3))
        else:
            yield int(10 ** rng.uniform(0, 3.8)), int(10 ** rng.uniform(0, 3.8))


def test_sizes(transform, proof):
    """Canvas and size after resizing, without the pixels."""
    wrong, thin = 0, 0
    for side in (448, 560):
        meta = transform(size=side)
        possible = torch.tensor(meta.find_supported_resolutions(4, side))
        for width, height in sizes(5000, side):
            best = meta.get_best_fit((width, height), possible)
            limited = tuple(min(max(n, side), m) for n, m in zip((width, height), best))
            theirs = meta.get_max_res_without_distortion((width, height), limited)
            thin += 0 in theirs
            canvas = choose_canvas(height, width, side)
            ours = resized_size(height, width, canvas, side)
            wrong += (canvas[1] * side, canvas[0] * side) != best
            wrong += ours[::-1] != tuple(max(1, n) for n in theirs)
    assert thin  # some of them are those on which Meta's code fails
    proof("Canvas and resized size", "Meta", "5,000 sizes for each tile size", wrong, 0)


def test_thin_images(transform):
    """Where Meta's code makes a side of 0 and fails, here it is 1, as in transformers."""
    thin = Image.new("RGB", (1, 2241), "red")
    with pytest.raises(ValueError):
        transform(size=560)(thin, max_num_chunks=4)
    ours = image_to_tiles(thin, 560)
    assert ours.canvas == (4, 1) and ours.pixel_values.isfinite().all()
    red = ours.pixel_values[:, 0] > 0  # [K, S, S]
    assert red[:, :, 0].all() and not red[:, :, 1:].any()


def test_pixels_of_random_sizes(transform, proof):
    rng, worst = random.Random(1), 0.0
    meta = transform(size=112)
    for _ in range(300):
        size = (rng.randrange(2, 700), rng.randrange(2, 700))
        noise = np.random.RandomState(rng.randrange(2**31)).randint(
            0, 256, (*size, 3), dtype=np.uint8
        )
        theirs, arrangement = meta(Image.fromarray(noise), max_num_chunks=4)
        ours = image_to_tiles(Image.fromarray(noise), 112)
        assert ours.canvas == arrangement
        worst = max(
            worst, (ours.pixel_values[: ours.num_tiles] - theirs).abs().max().item()
        )
    proof(
        "Image tiles, pixel values",
        "Meta",
        "300 noise images of random sizes",
        worst,
        0,
    )


def test_at_most_as_many_tiles_as_are_asked_for(transform):
    noise = np.random.RandomState(0).randint(0, 256, (90, 300, 3), dtype=np.uint8)
    picture, meta = Image.fromarray(noise), transform(size=56)
    for most in (1, 2, 3, 5, 6):
        theirs, arrangement = meta(picture, max_num_chunks=most)
        ours = image_to_tiles(picture, 56, most)
        assert ours.canvas == arrangement and ours.num_tiles <= most
        assert ours.pixel_values.shape == (most, 3, 56, 56)
        assert torch.equal(ours.pixel_values[: ours.num_tiles], theirs)
        assert not ours.pixel_values[ours.num_tiles :].any()
        assert canvases(most)[ours.aspect_ratio_id - 1] == ours.canvas
        assert choose_canvas(90, 300, 56, most) == ours.canvas


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_tiles_of_any_mode_are_those_of_the_picture_in_rgb(mode):
    noise = np.random.RandomState(0).randint(0, 256, (90, 50, 4), dtype=np.uint8)
    for picture in (gradient(), Image.fromarray(noise, "RGBA")):
        picture = picture.convert(mode)  # a palette and an alpha would be resized apart
        want = image_to_tiles(picture.convert("RGB"), 28)
        ours = image_to_tiles(picture, 28)
        assert torch.equal(ours.pixel_values, want.pixel_values)
    with pytest.raises(FrozenInstanceError):
        ours.canvas = (1, 1)


def test_tiles_do_not_hang_on_the_programs_defaults():
    want = image_to_tiles(gradient(), 28).pixel_values
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        got = image_to_tiles(gradient(), 28).pixel_values
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert got.dtype == torch.float32 and got.device.type == "cpu"
    assert torch.equal(got, want)


def test_pixels_of_the_hub(proof):
    from transformers.models.mllama.image_processing_pil_mllama import (
        MllamaImageProcessorPil,
    )

    processor = MllamaImageProcessorPil(
        size={"height": 560, "width": 560},
        image_mean=list(CLIP_MEAN),
        image_std=list(CLIP_STD),
        max_image_tiles=4,
    )
    worst, pictures = 0.0, photographs()
    for picture in pictures:
        theirs = processor([[picture]], return_tensors="pt")
        ours = image_to_tiles(picture, 560)
        assert theirs["aspect_ratio_ids"].item() == ours.aspect_ratio_id
        difference = (
            (theirs["pixel_values"][0, 0] - ours.pixel_values).abs().max().item()
        )
        worst = max(worst, difference)
    proof(
        "Image tiles of 560 pixels, pixel values",
        "transformers (Pillow backend)",
        "5 photographs",
        worst,
        1e-6,
    )


def test_order_of_canvases():
    assert canvases() == [
        (1, 1),
        (1, 2),
        (1, 3),
        (1, 4),
        (2, 1),
        (2, 2),
        (3, 1),
        (4, 1),
    ]


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width=40, height=20):
    """Red grows to the right, green downwards: every turn and flip shows."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 250, width)
    pixels[..., 1] = np.linspace(0, 250, height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(orientation):
    """What is read is what was photographed, however the camera stored it."""
    undo = {
        2: 2,
        3: 3,
        4: 4,
        5: 5,
        6: 8,
        7: 7,
        8: 6,
    }  # the stored form, made by the inverse
    stored = gradient()
    if orientation > 1:
        turned = gradient()
        turned.getexif()[0x0112] = undo[orientation]
        stored = ImageOps.exif_transpose(turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = open_image(saved(stored, "PNG", exif=exif))
    assert np.array_equal(np.asarray(shown), np.asarray(gradient()))
    # the low-level function does not look at it, as Meta's does not
    raw = Image.open(io.BytesIO(saved(stored, "PNG", exif=exif)))
    assert torch.equal(
        image_to_tiles(raw, 28).pixel_values, image_to_tiles(stored, 28).pixel_values
    )


def test_a_picture_that_was_opened_may_be_opened_again():
    """The tag that says how to turn it is gone, so that nobody turns it twice."""
    exif = Image.Exif()
    exif[0x0112] = 6
    once = open_image(saved(gradient(), "PNG", exif=exif))
    assert once.size == (20, 40)
    assert np.array_equal(np.asarray(open_image(once)), np.asarray(once))


def test_transparency_is_laid_on_white():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("LA", (4, 4), (0, 128))
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30] * 256)
    assert open_image(saved(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(saved(half, "PNG")).getpixel((0, 0)) == (127, 127, 127)
    assert open_image(saved(palette, "PNG")).getpixel((0, 0)) == (10, 20, 30)
    assert open_image(saved(palette, "PNG", transparency=0)).getpixel((0, 0)) == (
        255,
        255,
        255,
    )


def test_deep_and_other_modes():
    deep = Image.fromarray(np.array([[0, 32768, 65535]], dtype=np.uint16))
    shown = [open_image(saved(deep, "PNG")).getpixel((i, 0))[0] for i in range(3)]
    assert shown == [0, 128, 255]
    assert (
        open_image(saved(Image.new("CMYK", (3, 3), (0, 255, 255, 0)), "JPEG")).getpixel(
            (1, 1)
        )[0]
        > 200
    )
    assert open_image(saved(Image.new("1", (3, 3), 1), "PNG")).getpixel((1, 1)) == (
        255,
        255,
        255,
    )
    assert open_image(saved(Image.new("L", (3, 3), 77), "PNG")).getpixel((1, 1)) == (
        77,
        77,
        77,
    )


def test_animation_shows_its_first_frame():
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        moving = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        red, _, blue = open_image(moving).getpixel((2, 2))
        assert red > 240 and blue < 15


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2241)])
def test_odd_sizes(size):
    shown = open_image(saved(Image.new("RGB", size, "white"), "PNG"))
    result = image_to_tiles(shown, 56)
    assert shown.size == size and result.pixel_values.isfinite().all()


def test_a_path_bytes_a_file_and_an_image_are_the_same(tmp_path):
    data = saved(gradient(), "PNG")
    (tmp_path / "a.png").write_bytes(data)
    want = np.asarray(gradient())
    for source in (
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        data,
        io.BytesIO(data),
        gradient(),
    ):
        assert np.array_equal(np.asarray(open_image(source)), want)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_truncated_files(tmp_path, kind):
    noise = Image.fromarray(
        np.random.RandomState(0).randint(0, 256, (64, 64, 3), dtype=np.uint8)
    )
    data = saved(noise, kind)
    for part in (0.1, 0.5, 0.9):
        path = tmp_path / f"cut.{kind.lower()}"
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(InputError, match="truncated|no format"):
            open_image(path)


def test_bad_files(tmp_path, monkeypatch):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("not an image")
    for name, says in [
        ("nothing.jpg", "does not exist"),
        ("empty.jpg", "empty or of no format"),
        ("text.jpg", "empty or of no format"),
        ("", "is no regular file"),
    ]:
        with pytest.raises(InputError, match=says):
            open_image(tmp_path / name)
    with pytest.raises(InputError, match="An image is a int"):
        open_image(7)
    monkeypatch.setattr(tiles, "MOST_PIXELS", 100)
    monkeypatch.setattr(tiles, "LONGEST_SIDE", 50)
    for size in ((11, 10), (40, 40), (51, 1), (1, 51)):
        shape = f"has {size[0]} x {size[1]} pixels: expected at most 100 pixels and 50"
        for source in (Image.new("RGB", size), saved(Image.new("RGB", size), "PNG")):
            with pytest.raises(InputError, match=shape):
                open_image(source)
    for size in ((10, 10), (50, 2), (2, 50)):
        assert open_image(saved(Image.new("RGB", size), "PNG")).size == size
