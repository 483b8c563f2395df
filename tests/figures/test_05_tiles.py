"""The figures of chapter 5 against the package."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from mllama_lite import load
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.tiles import (
    CLIP_MEAN,
    CLIP_STD,
    Tiles,
    canvases,
    choose_canvas,
    image_to_tiles,
    resized_size,
)

TILE = 560


@pytest.mark.parametrize(
    "height, width",
    [(1, 1), (60, 90), (427, 640), (561, 560), (1080, 1920), (900, 1799), (2500, 7)],
)
def test_canvas_map(figure, height, width):
    shown = figure("canvas_map")
    shown.set("Height", height)
    shown.set("Width", width)
    values, canvas = shown.values(), choose_canvas(height, width, TILE)
    assert tuple(values["canvas"]) == canvas
    assert values["id"] == canvases().index(canvas) + 1
    tall, wide = resized_size(height, width, canvas, TILE)
    assert values["shown"] == [tall, wide]
    tiles = canvas[0] * canvas[1]
    padding = 1 - tall * wide / (tiles * TILE * TILE)
    assert values["padding"] == pytest.approx(padding)
    scales = [min(r * TILE / height, c * TILE / width) for r, c in canvases()]
    assert values["scales"] == pytest.approx(scales)
    words = shown.words()
    assert ("fits nowhere" in words) == (max(scales) < 1)
    assert f"canvas {canvas[0]} x {canvas[1]} ({tiles} tile" in words
    assert f"as {tall} x {wide}, and {round(100 * padding)} % of the canvas" in words


def test_canvas_map_cliffs(figure):
    shown = figure("canvas_map")
    assert shown.values()["canvas"] == [2, 2]
    assert shown.values()["padding"] > 0.74
    assert "One row and one column less, and it would be 1 x 1." in shown.words()
    shown.set("Begin with", "560 x 560, just one tile")
    assert shown.values()["padding"] == 0
    assert "One row and one column more, and it would be 2 x 2." in shown.words()
    shown.set("Begin with", "900 x 1800, twice as wide")
    assert shown.values()["canvas"] == [1, 2]
    shown.control("Width").press("ArrowLeft")
    assert shown.values()["canvas"] == list(choose_canvas(900, 1799, TILE)) == [2, 2]
    assert shown.control("Begin with").input_value() == "as dragged"


def test_canvas_map_drags_and_colours_the_region(figure):
    """The corner follows the pointer; the point under it lies in the coloured region."""
    shown = figure("canvas_map")
    corner = shown.root.locator("[data-drag=corner]")
    box = shown.root.locator("svg").first.bounding_box()
    unit = (
        box["width"] / 290 * 250 / 2500
    )  # screen pixels for each pixel of the picture
    left, top = box["x"] + box["width"] * 36 / 290, box["y"] + box["width"] * 36 / 290
    mouse = shown.page.mouse
    for height, width in [(700, 2400), (2400, 650), (1900, 1100), (300, 300)]:
        corner.hover()
        mouse.down()
        mouse.move(left + unit * width, top + unit * height)
        mouse.up()
        height, width = (
            int(shown.control(c).input_value()) for c in ("Height", "Width")
        )
        assert f"{height} x {width} pixels" in shown.words()
        canvas = choose_canvas(height, width, TILE)
        assert tuple(shown.values()["canvas"]) == canvas
        inside = shown.root.locator("svg").first.evaluate(
            """(svg, [x, y]) => [...svg.querySelectorAll("path")].map(path =>
              path.isPointInFill(new DOMPoint(x, y)) && path.classList.contains("fill-orange"))""",
            [width - 0.5, height - 0.5],
        )
        assert sum(inside) == 1
    assert abs(height - 300) < 12 and abs(width - 300) < 12


LABELS = {
    "stretched": "Stretched to fill the canvas",
    "plain": "Shrunk without antialiasing",
    "raw": "Not normalised",
    "late": "Padded after normalising",
    "id": "Id with width first",
}


def processed(image, mistakes):
    """The chapter's processor and its mistakes, as in "In a trained model"."""
    side, canvas = 56, choose_canvas(image.height, image.width, 56)
    rows, columns = canvas
    height, width = rows * side, columns * side
    if "stretched" not in mistakes:
        height, width = resized_size(image.height, image.width, canvas, side)
    if "plain" in mistakes:
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].double()
        small = F.interpolate(pixels, (height, width), mode="bilinear")[0].round()
    else:
        small = image.resize((width, height), Image.Resampling.BILINEAR)
        small = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    padded = torch.zeros(3, rows * side, columns * side)
    padded[:, :height, :width] = small
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    if "raw" in mistakes:
        mean, std = 0.0, 1.0
    pixels = (padded / 255 - mean) / std
    if "late" in mistakes:
        pixels[:, height:] = pixels[:, :, width:] = 0
    values = torch.zeros(4, 3, side, side)
    cut = pixels.unflatten(1, (rows, side)).unflatten(3, (columns, side))
    values[: rows * columns] = cut.permute(1, 3, 0, 2, 4).flatten(0, 1)
    order = canvases()
    wanted = canvas[::-1] if "id" in mistakes else canvas
    return Tiles(values, order.index(wanted) + 1, canvas)


def picture(name):
    return Image.open(find_folder() / "pictures" / f"{name}.png").convert("RGB")


def settled(shown, name, mistakes=(), answered=False):
    """The values, once the figure has taken what the controls say."""
    shown.page.wait_for_function(
        """([name, mistakes, answered]) => {
          const now = document.querySelector(".mllama-figure").figure.numbers();
          return now && !now.doing && now.name === name && (!answered || now.answer !== undefined)
            && String(now.names.toSorted()) === String(mistakes);
        }""",
        arg=[name, sorted(mistakes), answered],
    )
    return shown.values()


PICTURES = {
    "one": "A single digit",
    "mixed": "Digits and shapes",
    "digits": "Three digits",
    "tall": "A tall picture",
}


@pytest.mark.parametrize(
    "name, mistakes",
    [("one", []), ("mixed", ["stretched"]), ("digits", ["plain", "id"])]
    + [("tall", ["raw"]), ("one", ["late"]), ("tall", ["late", "plain", "id"])],
)
def test_tile_strip(figure, name, mistakes):
    shown = figure("tile_strip")
    shown.set("Picture", PICTURES[name])
    for mistake, label in LABELS.items():
        shown.set(label, mistake in mistakes)
    values, want = settled(shown, name, mistakes), processed(picture(name), mistakes)
    if not mistakes:
        right = image_to_tiles(picture(name), 56)
        assert torch.equal(want.pixel_values, right.pixel_values)
    got = torch.tensor(values["pixelValues"]).view(4, 3, 56, 56)
    # Plain bilinear halves may be rounded either way: one of 255 steps, over the std.
    limit = 1.01 / 255 / min(CLIP_STD) if "plain" in mistakes else 1e-6
    assert (got - want.pixel_values).abs().max() < limit
    different = (got - want.pixel_values).abs() > 1e-6
    assert different.float().mean() < 0.01
    assert values["aspectRatioId"] == want.aspect_ratio_id
    assert values["same"] == (not mistakes)
    for mistake, label in LABELS.items():
        assert (label.lower() in shown.words()) == (mistake in mistakes)


def test_tile_strip_answers(figure):
    """What the model answers, right and with mistakes, is what the package's answers."""
    vlm, shown = load(dtype="float32", device="cpu"), figure("tile_strip")
    shown.press("Ask the model")
    for name, mistakes in [("one", ["late"]), ("one", ["id"]), ("tall", ["raw"])]:
        shown.set("Picture", PICTURES[name])
        for mistake, label in LABELS.items():
            shown.set(label, mistake in mistakes)
        values = settled(shown, name, mistakes, answered=True)
        right = vlm.ask("What is in the picture?", picture(name))
        with patch(
            "mllama_lite.vlm.image_to_tiles", lambda i, *_: processed(i, mistakes)
        ):
            given = vlm.ask("What is in the picture?", picture(name))
        assert (values["right"], values["answer"]) == (right, given)
        assert f"the model answers: {given}. Without mistakes" in shown.words()
        assert ("the same" in shown.words()) == (right == given)
        assert values["same"] == ("here it changes nothing" in shown.words())
        assert values["same"] == (mistakes == ["id"])  # 2 x 2 turned is 2 x 2
    assert right != given


def test_tile_strip_takes_a_picture_of_ones_own(figure, tmp_path):
    shown, path = figure("tile_strip"), tmp_path / "own.png"
    shown.set(LABELS["late"], False)
    shown.set("Picture", "Your own")
    shown.page.wait_for_function(
        "document.querySelector('.figure-words').innerText.includes('no picture yet')"
    )
    noise = np.random.default_rng(0).integers(0, 256, (90, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    shown.control("Your own picture").set_input_files(path)
    values, want = settled(shown, "own"), image_to_tiles(Image.open(path), 56)
    got = torch.tensor(values["pixelValues"]).view(4, 3, 56, 56)
    assert (got - want.pixel_values).abs().max() < 1e-6
    assert f"Canvas {want.canvas[0]} x {want.canvas[1]}," in shown.words()
