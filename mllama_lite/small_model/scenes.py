# Generated from notebooks/11_training.ipynb: edit there, or here and run `make update`.
"""Pictures of handwritten digits and coloured shapes.

Built in chapter 11, notebooks/11_training.ipynb. The digits are real: the 1,797 scans of
the UCI set that scikit-learn ships. A scene is a function of its random numbers, so a
seed stands for a whole data set.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from mllama_lite.errors import InputError
from mllama_lite.tiles import canvases, choose_canvas


COLOURS = {
    "red": (214, 36, 40),
    "orange": (242, 142, 20),
    "green": (34, 150, 60),
    "blue": (30, 90, 214),
    "purple": (140, 50, 170),
    "black": (35, 35, 38),
}
DIGITS = tuple("0123456789")
SHAPES = ("circle", "square", "triangle", "star")
KINDS = DIGITS + SHAPES
TILE = 56  # pixels: sizes below are meant for tiles of this side
MAX_THINGS = 4


# Which of the 1,797 scans serve what. The scans come writer by writer, so these are
# other people's hands. "test" is for one measurement at the end.
SPLITS = {"train": (0, 1257), "validation": (1257, 1437), "test": (1437, 1797)}


@dataclass(frozen=True)
class Thing:
    """A digit or a shape on a picture.

    Attributes:
        kind: one of KINDS.
        colour: one of COLOURS.
        box: (left, top, right, bottom) in pixels of the picture.
    """

    kind: str
    colour: str
    box: tuple[float, float, float, float]

    @property
    def name(self) -> str:
        """Colour and kind, as in "red 4"."""
        return f"{self.colour} {self.kind}"

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) in pixels of the picture."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    """A picture and what is on it, from left to right."""

    image: Image.Image = field(repr=False)
    things: tuple[Thing, ...]

    @property
    def digits(self) -> tuple[Thing, ...]:
        """The things that are digits, from left to right."""
        return tuple(thing for thing in self.things if thing.kind in DIGITS)


def load_masks(split: str) -> dict[str, list[Image.Image]]:
    """What can be drawn: for each kind, pictures of where its ink is.

    Args:
        split: a key of SPLITS; decides which scans of the digits are used.

    Returns:
        dict from kind to a list of 40 x 40 greyscale images, 255 for ink.

    Raises:
        InputError: an unknown split, or scikit-learn is not installed.

    Source: scikit-learn's `load_digits`, 8 x 8 scans with values 0 to 16: Alpaydin &
    Kaynak 1998.
    """
    if split not in SPLITS:
        raise InputError(
            f"The split is {split!r}: expected one of {', '.join(SPLITS)}; choose one."
        )
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise InputError(
            "scikit-learn is not installed, and the scans of the digits come with it: "
            "expected version 1.0 or later; pip install scikit-learn."
        ) from None
    masks = {shape: [draw_shape(shape)] for shape in SHAPES}
    scans, labels = load_digits(return_X_y=True)
    first, end = SPLITS[split]
    for scan, label in zip(scans[first:end], labels[first:end]):
        values = (scan.reshape(8, 8) * 255 / 16).round().astype(np.uint8)
        mask = Image.fromarray(values).resize((32, 32), Image.Resampling.BICUBIC)
        masks.setdefault(str(label), []).append(ImageOps.expand(mask, 4))
    return masks


def draw_shape(name: str) -> Image.Image:
    """A filled shape, 40 x 40 pixels, 255 for ink; drawn large, then made smaller."""
    image = Image.new("L", (320, 320))
    draw = ImageDraw.Draw(image)
    if name == "circle":
        draw.ellipse((56, 56, 264, 264), fill=255)
    elif name == "square":
        draw.rectangle((68, 68, 252, 252), fill=255)
    else:
        corners = {"triangle": (120, 120, 120), "star": (128, 50) * 5}[name]
        turns = [2 * math.pi * i / len(corners) for i in range(len(corners))]
        middle = 184 if name == "triangle" else 168
        draw.polygon(
            [
                (160 + r * math.sin(turn), middle - r * math.cos(turn))
                for r, turn in zip(corners, turns)
            ],
            fill=255,
        )
    return image.resize((40, 40), Image.Resampling.BOX)


def bent(
    mask: Image.Image, side: int, rng: np.random.Generator, strength: float
) -> Image.Image:
    """A mask scaled to `side` pixels, turned and distorted at random.

    Args:
        mask: greyscale image.
        side: of the result, in pixels.
        rng: numpy Generator.
        strength: 1 moves each corner by up to 4% of the side and turns by up to 6
            degrees; training uses more than the held-out pictures do.

    Returns:
        greyscale image, side x side.
    """
    angle = rng.uniform(-0.1, 0.1) * strength
    corners = np.array([[-1, -1], [-1, 1], [1, 1], [1, -1]]) * 0.5
    turn = [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
    corners = corners @ turn + rng.uniform(-0.04, 0.04, (4, 2)) * strength
    quad = ((corners + 0.5) * mask.width).flatten().tolist()
    image = mask.transform(
        (side, side), Image.Transform.QUAD, quad, Image.Resampling.BILINEAR
    )
    power = math.exp(rng.uniform(-0.15, 0.15) * strength)  # thinner or thicker ink
    return image.point([round(255 * (i / 255) ** power) for i in range(256)])


def draw_scene(
    rng: np.random.Generator,
    masks: dict[str, list[Image.Image]],
    num_things: int | None = None,
    strength: float = 1.0,
    kinds: Sequence[str] = KINDS,
    canvas: tuple[int, int] | None = None,
) -> Scene:
    """Draw a random scene.

    Args:
        rng: numpy Generator; the scene is a function of it.
        masks: from `load_masks`.
        num_things: how many things to draw; None for a random number, 0 to 4. Fewer are
            drawn where there is no room for all.
        strength: of the distortion of each thing, see `bent`.
        kinds: which may appear; digits are four times as likely as shapes.
        canvas: (rows, columns) for which the picture is sized; None for any of the
            eight.

    Returns:
        Scene.
    """
    options = canvases()
    if canvas is None:
        canvas = options[rng.integers(len(options))]
    # Few pictures fill their canvas exactly, and some are larger and will be shrunk.
    while True:
        zoom = 1.0 if rng.random() < 0.7 else rng.uniform(1, 3)
        fill = rng.uniform(0.8, 1.0, 2)
        height, width = (round(n * TILE * f * zoom) for n, f in zip(canvas, fill))
        if choose_canvas(height, width, TILE) == canvas:
            break
    if num_things is None:
        most = 2 if canvas == (1, 1) else MAX_THINGS
        num_things = int(rng.integers(1, most + 1)) if rng.random() > 0.03 else 0
    image = _paper(rng, height, width)
    weights = np.array([1.0 if kind in DIGITS else 0.6 for kind in kinds])
    things: list[Thing] = []
    names = list(COLOURS)
    for _ in range(num_things):
        side = round(rng.uniform(26, 38) * zoom)
        box = _free_place(rng, width, height, side, [thing.box for thing in things])
        if box is None:
            continue
        kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
        colour = names[rng.integers(len(names))]
        ink = _ink(rng, colour)
        mask = masks[kind][rng.integers(len(masks[kind]))]
        mask = bent(mask, side, rng, strength)
        image.paste(ink, box[:2], mask)
        things.append(Thing(kind, colour, box))
    return Scene(image, tuple(sorted(things, key=lambda thing: thing.centre)))


def _ink(rng: np.random.Generator, colour: str) -> tuple[int, int, int]:
    """(red, green, blue) of a colour, a little different each time."""
    mixed = np.array(COLOURS[colour]) + rng.uniform(-18, 18, 3)
    red, green, blue = mixed.clip(0, 255).astype(int).tolist()
    return red, green, blue


def _paper(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    """Light paper: a tint, a slope of brightness, a little noise."""
    tint = rng.uniform(226, 255, 3)
    slope = rng.uniform(-12, 12, 2)
    light = np.linspace(-0.5, 0.5, height)[:, None] * slope[0]
    light = light + np.linspace(-0.5, 0.5, width) * slope[1]  # [height, width]
    noise = rng.standard_normal((height, width), dtype=np.float32) * rng.uniform(0, 5)
    pixels = tint + (light + noise)[:, :, None]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def _free_place(
    rng: np.random.Generator,
    width: int,
    height: int,
    side: int,
    taken: list[tuple[float, float, float, float]],
) -> tuple[int, int, int, int] | None:
    """A random box of `side` pixels that overlaps no other; None if none was found."""
    side_x, side_y = min(side, width), min(side, height)
    for _ in range(40):
        x = int(rng.integers(width - side_x + 1))
        y = int(rng.integers(height - side_y + 1))
        box = (x, y, x + side, y + side)
        if all(
            box[0] >= other[2]
            or other[0] >= box[2]
            or box[1] >= other[3]
            or other[1] >= box[3]
            for other in taken
        ):
            return box
    return None


def draw_row(
    rng: np.random.Generator,
    masks: dict[str, list[Image.Image]],
    num_things: int | None = None,
    strength: float = 1.0,
    kinds: Sequence[str] = KINDS,
    canvas: tuple[int, int] = (1, 2),
) -> Scene:
    """Draw things close beside each other, or above, as one writes a number.

    Args:
        rng: numpy Generator; the scene is a function of it.
        masks: from `load_masks` or `pen_masks`.
        num_things: how many things to draw; None for a random number, 1 to 4. Fewer are
            drawn where there is no room for all.
        strength: of the distortion of each thing, see `bent`.
        kinds: which may appear, all equally likely.
        canvas: (rows, columns) for which the picture is sized, one of them 1.

    Returns:
        Scene.
    """
    fill = rng.uniform(0.8, 1.0, 2)
    height, width = (round(n * TILE * f) for n, f in zip(canvas, fill))
    along = int(canvas[0] <= canvas[1])  # the axis of the row: 1 is across
    length, margin, tall = (height, width)[along], 4, rng.uniform(19, 28)
    if num_things is None:
        num_things = int(rng.integers(1, MAX_THINGS + 1))
    names = list(COLOURS)
    chosen: list[tuple[str, str, Image.Image]] = []
    for _ in range(num_things):
        kind = kinds[int(rng.integers(len(kinds)))]
        mask = bent(masks[kind][rng.integers(len(masks[kind]))], 80, rng, strength)
        mask = mask.crop(mask.point([255 * (i > 40) for i in range(256)]).getbbox())
        high = round(tall * rng.uniform(0.88, 1.12))
        # Digits become narrow where there is little room; a narrow circle is a 0.
        narrow = rng.uniform(0.6, 1.05) if kind in DIGITS else 1.0
        wide = min(max(4, round(high * narrow * mask.width / mask.height)), 2 * high)
        mask = mask.resize((wide, high), Image.Resampling.BOX)
        used = sum(one.size[1 - along] + 2 for _, _, one in chosen)
        if used + mask.size[1 - along] + 2 * margin > length:
            break
        chosen.append((kind, names[rng.integers(len(names))], mask))
    image, things = _paper(rng, height, width), []
    free = length - 2 * margin - sum(one.size[1 - along] + 2 for _, _, one in chosen)
    gaps = rng.dirichlet(np.full(len(chosen) + 1, 3.0)) * (free + 2)
    place = margin + gaps[0]
    for (kind, colour, mask), gap in zip(chosen, gaps[1:]):
        ink = _ink(rng, colour)
        room = (height, width)[1 - along] - mask.size[along]
        beside = room / 2 + rng.uniform(-1, 1) * min(8, max(room / 2 - 2, 0))
        left, top = (place, beside) if along else (beside, place)
        corner = (round(left), round(top))
        image.paste(ink, corner, mask)
        box = (*corner, corner[0] + mask.width, corner[1] + mask.height)
        things.append(Thing(kind, colour, box))
        place += mask.size[1 - along] + 2 + gap
    return Scene(image, tuple(sorted(things, key=lambda thing: thing.centre)))
