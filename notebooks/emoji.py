"""Emoji as a task to learn: their drawings from the sheets, and data folders of them.

Chapter 14 and benchmarks/skills.py use it. The sheets are made by tools/emoji.py; whose
they are, and their licences, is told in notebooks/emoji/README.md.
"""

import json
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FOLDER = Path(__file__).resolve().parent / "emoji"
NAMES = (FOLDER / "names.txt").read_text().split()
DESIGNERS = ("noto", "twemoji", "openmoji", "fluent-emoji-flat")
DRAWN, COLUMNS = 112, 14  # pixels of a drawing, drawings in a row of a sheet
SIDE = 56  # pixels of a picture, which are those of the small model's tile
QUESTION = "What is this?"
LONGEST = 6  # letters of the names that are learned; the others are to try things on
SHORT = [name for name in NAMES if len(name) <= LONGEST]
LONG = [name for name in NAMES if len(name) > LONGEST]


@cache
def drawings(designer):
    """The drawings of one designer: dict from the name to an RGBA image."""
    sheet = Image.open(FOLDER / f"{designer}.png").convert("RGBA")
    places = [(i % COLUMNS * DRAWN, i // COLUMNS * DRAWN) for i in range(len(NAMES))]
    cut = [sheet.crop((x, y, x + DRAWN, y + DRAWN)) for x, y in places]
    return dict(zip(NAMES, cut))


def picture(drawing, random=None, side=SIDE):
    """A drawing on a ground, as RGB image.

    Args:
        drawing: RGBA image.
        random: numpy Generator, which chooses size, place, tilt, a light ground, and
            whether it is mirrored; None for the drawing as it is, on white.
        side: of the image, in pixels.

    Returns:
        RGB image of side by side pixels.
    """
    if random is None:
        size, x, y, ground = side, 0, 0, (255, 255, 255)
    else:
        size = int(random.integers(round(0.6 * side), side + 1))
        x, y = (int(random.integers(side - size + 1)) for _ in range(2))
        ground = tuple(int(value) for value in random.integers(160, 256, 3))
        drawing = drawing.rotate(random.uniform(-15, 15), Image.Resampling.BICUBIC)
        if random.random() < 0.5:
            drawing = ImageOps.mirror(drawing)
    drawing = drawing.resize((size, size), Image.Resampling.LANCZOS)
    image = Image.new("RGB", (side, side), ground)
    image.paste(drawing, (x, y), drawing)
    return image


def write_data(folder, designers, count, names=SHORT, seed=0):
    """A folder that `finetune` and `datasets` read: images and metadata.jsonl.

    Args:
        folder: path; made if it is not there.
        designers: whose drawings.
        count: pictures of every drawing, each different; 0 for one as it is drawn.
        names: which of NAMES.
        seed: of what `picture` chooses.

    Returns:
        path of the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for designer in designers:
        for name in names:
            drawing = drawings(designer)[name]
            for number in range(count or 1):
                parts = [seed, DESIGNERS.index(designer), NAMES.index(name), number + 1]
                random = np.random.default_rng(parts) if count else None
                file_name = f"{designer}-{name}-{number}.png"
                picture(drawing, random).save(folder / file_name)
                line = {"file_name": file_name, "question": QUESTION, "answer": name}
                lines.append(json.dumps(line) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines))
    return folder
