# Generated from notebooks/11_training.ipynb: edit there, or here and run `make update`.
"""Digits and shapes as a pen draws them, each a little different from the last.

Built in chapter 11, notebooks/11_training.ipynb. A drawing is a function of its random
numbers.
"""

import math
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from mllama_lite.small_model.scenes import DIGITS, SHAPES, draw_shape


Point = tuple[float, float]
Stroke = list[Point]


def arc(
    x: float, y: float, across: float, down: float, start: float, end: float
) -> Stroke:
    """Points of an ellipse around (x, y), from one angle to another.

    Args:
        x, y: of its centre.
        across, down: half of its width and half of its height.
        start, end: degrees; 0 is right, 90 is down.
    """
    turns = [math.radians(start + (end - start) * i / 23) for i in range(24)]
    return [(x + across * math.cos(t), y + down * math.sin(t)) for t in turns]


def _star(radii: tuple[float, ...], step: int) -> Stroke:
    """A closed line through points around the middle, each `step` tenths of a turn on."""
    turns = [math.pi * step * i / 5 for i in range(len(radii) + 1)]
    return [
        (0.5 + r * math.sin(t), 0.5 - r * math.cos(t))
        for r, t in zip(radii + radii[:1], turns)
    ]


# For each kind the ways in which people write it: a way is a list of strokes, a stroke a
# list of points, in a square of side 1 with y downwards.
WAYS: dict[str, list[list[Stroke]]] = {
    "0": [
        [arc(0.5, 0.5, 0.5, 0.5, -80, -440)],
        [arc(0.5, 0.5, 0.5, 0.5, -110, 250)],
        [arc(0.5, 0.5, 0.46, 0.5, -40, -410)],
    ],
    "1": [
        [[(0.5, 0), (0.5, 1)]],
        [[(0.2, 0.22), (0.6, 0), (0.6, 1)]],
        [[(0.1, 0.38), (0.62, 0), (0.62, 1)]],
        [[(0.25, 0.2), (0.55, 0), (0.55, 1)], [(0.2, 1), (0.9, 1)]],
    ],
    "2": [
        [arc(0.48, 0.28, 0.4, 0.28, 200, 385) + [(0.1, 1), (0.95, 1)]],
        [
            arc(0.46, 0.27, 0.38, 0.27, 190, 400)
            + [(0.3, 0.86)]
            + arc(0.2, 0.9, 0.12, 0.1, -30, -330)
            + [(0.55, 0.92), (0.95, 0.98)]
        ],
        [[(0.12, 0.06), (0.86, 0.02), (0.1, 0.98), (0.92, 0.96)]],
        [arc(0.5, 0.3, 0.42, 0.3, 180, 375) + [(0.5, 0.74), (0.06, 1), (0.94, 0.94)]],
    ],
    "3": [
        [arc(0.42, 0.26, 0.4, 0.26, 215, 450) + arc(0.42, 0.75, 0.48, 0.25, -90, 150)],
        [[(0.1, 0), (0.85, 0), (0.4, 0.42)] + arc(0.4, 0.7, 0.48, 0.3, -80, 145)],
        [
            arc(0.42, 0.24, 0.4, 0.24, 200, 430)
            + [(0.36, 0.5)]
            + arc(0.42, 0.75, 0.46, 0.25, -70, 165)
        ],
    ],
    "4": [
        [[(0.68, 0), (0.04, 0.68), (0.96, 0.68)], [(0.7, 0.34), (0.7, 1)]],
        [[(0.15, 0.02), (0.1, 0.55), (0.9, 0.52)], [(0.78, 0), (0.74, 1)]],
        [[(0.7, 1), (0.7, 0), (0.05, 0.66), (0.98, 0.66)]],
        [[(0.3, 0), (0.1, 0.5), (0.94, 0.56)], [(0.66, 0.22), (0.6, 1)]],
    ],
    "5": [
        [[(0.9, 0), (0.2, 0), (0.14, 0.45)] + arc(0.44, 0.68, 0.46, 0.32, -125, 140)],
        [
            [(0.2, 0.02), (0.14, 0.46)] + arc(0.42, 0.69, 0.44, 0.31, -125, 150),
            [(0.2, 0.02), (0.92, 0)],
        ],
        [
            [(0.88, 0.03), (0.42, 0.02), (0.22, 0.2), (0.3, 0.42)]
            + arc(0.44, 0.72, 0.42, 0.28, -95, 145)
        ],
    ],
    "6": [
        [[(0.78, 0), (0.34, 0.3)] + arc(0.5, 0.7, 0.42, 0.3, 195, 540)],
        [arc(0.8, 0.65, 0.7, 0.65, -100, -175) + arc(0.5, 0.73, 0.4, 0.27, 180, 530)],
        [[(0.6, 0), (0.16, 0.66)] + arc(0.48, 0.74, 0.36, 0.26, 190, -150)],
    ],
    "7": [
        [[(0.05, 0.02), (0.92, 0), (0.36, 1)]],
        [[(0.05, 0), (0.92, 0.02), (0.4, 1)], [(0.25, 0.5), (0.85, 0.46)]],
        [[(0.06, 0.18), (0.08, 0), (0.9, 0), (0.55, 0.45), (0.44, 1)]],
        [[(0.05, 0.05), (0.5, 0.02), (0.9, 0.04), (0.6, 0.4), (0.4, 1)]],
    ],
    "8": [
        [arc(0.5, 0.25, 0.38, 0.25, 90, -270) + arc(0.5, 0.75, 0.46, 0.25, -90, 270)],
        [arc(0.5, 0.25, 0.38, 0.25, 90, 450) + arc(0.5, 0.75, 0.46, 0.25, -90, -450)],
        [
            arc(0.5, 0.25, 0.36, 0.25, -45, -225)
            + [(0.5, 0.5)]
            + arc(0.5, 0.76, 0.44, 0.24, -45, 225)
            + [(0.5, 0.5)]
            + arc(0.5, 0.25, 0.36, 0.25, 45, -45)
        ],
        [arc(0.5, 0.24, 0.36, 0.24, -60, -430), arc(0.5, 0.75, 0.42, 0.25, -100, 270)],
    ],
    "9": [
        [arc(0.48, 0.29, 0.4, 0.29, -20, -360) + [(0.88, 0.3), (0.8, 1)]],
        [arc(0.48, 0.3, 0.4, 0.3, 0, -365) + arc(0.4, 0.55, 0.46, 0.45, -20, 120)],
        [arc(0.45, 0.28, 0.38, 0.28, -50, -340), [(0.84, 0.04), (0.82, 1)]],
        [arc(0.46, 0.28, 0.4, 0.28, -30, -400) + [(0.62, 1)]],
    ],
    "circle": [
        [arc(0.5, 0.5, 0.5, 0.5, -90, 280)],
        [arc(0.5, 0.5, 0.5, 0.5, -70, -440)],
    ],
    "square": [
        [[(0.04, 0.04), (0.96, 0.04), (0.96, 0.96), (0.04, 0.96), (0.04, 0.02)]],
        [[(0.96, 0.05), (0.04, 0.05), (0.04, 0.95), (0.96, 0.95), (0.96, 0.03)]],
    ],
    "triangle": [
        [[(0.5, 0.02), (0.98, 0.95), (0.02, 0.95), (0.5, 0.02)]],
        [[(0.02, 0.95), (0.5, 0.03), (0.98, 0.95), (0.02, 0.95)]],
    ],
    "star": [
        [_star((0.52, 0.21) * 5, 1)],
        [_star((0.52,) * 5, 4)],  # in one go, through its own middle
    ],
}


def written(rng: np.random.Generator, way: list[Stroke]) -> list[np.ndarray]:
    """The strokes of a way, as one hand makes them once.

    The line sways slowly, corners become round, and the whole leans.

    Args:
        rng: numpy Generator.
        way: list of strokes, see WAYS.

    Returns:
        list of arrays [40, 2], (x, y), in a square of side 1 or near it.
    """
    many, smooth = 40, int(rng.integers(0, 4))
    lean, strokes = rng.normal(0, 0.15), []
    for stroke in way:
        points = np.array(stroke)
        along = np.concatenate([[0], np.hypot(*np.diff(points, axis=0).T).cumsum()])
        sway = rng.normal(0, 0.035, (7, 2))
        even, knots = np.linspace(0, along[-1], many), np.linspace(0, along[-1], 7)
        line = np.stack(
            [
                np.interp(even, along, points[:, i])
                + np.interp(even, knots, sway[:, i])
                for i in (0, 1)
            ],
            axis=1,
        )
        for _ in range(smooth):
            line[1:-1] = (line[:-2] + 2 * line[1:-1] + line[2:]) / 4
        line[:, 0] += lean * (0.5 - line[:, 1])
        strokes.append(line)
    return strokes


def draw_with_pen(rng: np.random.Generator, kind: str) -> Image.Image:
    """One drawing of a digit or of a shape's outline.

    Args:
        rng: numpy Generator; the drawing is a function of it.
        kind: one of KINDS.

    Returns:
        40 x 40 greyscale image, 255 for ink: a mask as those of `load_masks`.
    """
    ways, scale = WAYS[kind], 4  # drawn large, then made smaller
    strokes = written(rng, ways[rng.integers(len(ways))])
    height = rng.uniform(22, 34)
    # A 0 as wide as it is high would be a circle.
    widest = (0.5, 0.8) if kind in DIGITS else (0.88, 1.12)
    width, pen = height * rng.uniform(*widest), height * rng.uniform(0.11, 0.26)
    points = np.concatenate(strokes)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    most = (40 - pen) / np.ptp(points, axis=0).clip(0.01) / (width, height)
    size = np.array([width, height]) * min(1.0, most.min()) * scale
    image = Image.new("L", (40 * scale, 40 * scale))
    draw, thick = ImageDraw.Draw(image), pen * scale
    for stroke in strokes:
        line = ((stroke - middle) * size + 20 * scale).tolist()
        draw.line([tuple(point) for point in line], 255, round(thick))
        for x, y in line:  # round ends and joints
            r = thick / 2
            draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    return image.resize((40, 40), Image.Resampling.BOX)


@cache
def pen_masks(seed: int = 0, count: int = 500) -> dict[str, list[Image.Image]]:
    """Drawings of everything, to be used as the scans of `load_masks` are; drawn once.

    Args:
        seed: of the drawings.
        count: of each kind; every second shape is filled.

    Returns:
        dict from kind to a list of 40 x 40 greyscale images, 255 for ink.
    """
    rng = np.random.default_rng(seed)
    masks = {kind: [draw_with_pen(rng, kind) for _ in range(count)] for kind in WAYS}
    for shape in SHAPES:
        masks[shape][::2] = [draw_shape(shape)] * len(masks[shape][::2])
    return masks
