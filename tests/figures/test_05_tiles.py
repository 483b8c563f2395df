"""The figures of chapter 5 against the package."""

import pytest

from mllama_lite.tiles import canvases, choose_canvas, resized_size

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
