"""How well the live page reads what is drawn on its paper.

python benchmarks/drawings.py [--count 12] [--seed 0] [--model FOLDER] [--out FILE]
    [--sheet FOLDER]

Digits and shapes are drawn by program as a hand draws them: each digit in two or three ways,
with a slant, a size, a place and a wobble of its own, as points that a pointer would give. The
page's own code makes the picture of them in Chromium's canvas, and the page's engine answers.
Single digits, three in a row, shapes stamped and shapes outlined with the pen.
"""

import argparse
import base64
import hashlib
import json
import math
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
import live
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.small_model.scenes import COLOURS, SHAPES

SIDE = 112  # of the page's paper


def arc(x, y, rx, ry, begin, end):
    """Points of an ellipse's arc, in degrees; 0 is right, 90 is down."""
    turns = np.radians(np.linspace(begin, end, 24))
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns]


# Strokes in a box of 1 by 1, x to the right, y down.
DIGITS = {
    "0": [
        [arc(0.5, 0.5, 0.32, 0.5, -90, 270)],
        [arc(0.5, 0.5, 0.25, 0.5, -60, 310)],
    ],
    "1": [
        [[(0.5, 0), (0.5, 1)]],
        [[(0.25, 0.28), (0.55, 0), (0.55, 1)]],
        [[(0.28, 0.25), (0.5, 0), (0.5, 1)], [(0.25, 1), (0.75, 1)]],
    ],
    "2": [
        [arc(0.5, 0.28, 0.32, 0.28, 190, 380) + [(0.18, 1), (0.85, 1)]],
        [arc(0.48, 0.3, 0.3, 0.3, 210, 400) + [(0.15, 0.96), (0.4, 0.92), (0.86, 1)]],
    ],
    "3": [
        [arc(0.45, 0.25, 0.3, 0.25, 200, 440) + arc(0.45, 0.74, 0.34, 0.26, -80, 160)],
        [[(0.2, 0), (0.78, 0), (0.45, 0.4)] + arc(0.45, 0.7, 0.33, 0.3, -85, 150)],
    ],
    "4": [
        [[(0.6, 0), (0.12, 0.66), (0.9, 0.66)], [(0.66, 0.35), (0.66, 1)]],
        [[(0.22, 0), (0.2, 0.5), (0.82, 0.5)], [(0.76, 0), (0.74, 1)]],
    ],
    "5": [
        [[(0.82, 0), (0.26, 0), (0.22, 0.42)] + arc(0.45, 0.68, 0.35, 0.32, -120, 135)],
        [
            [(0.26, 0), (0.23, 0.44)] + arc(0.45, 0.7, 0.32, 0.3, -115, 140),
            [(0.26, 0), (0.8, 0.02)],
        ],
    ],
    "6": [
        [[(0.7, 0), (0.36, 0.3)] + arc(0.5, 0.7, 0.3, 0.3, 195, 555)],
        [arc(0.72, 0.6, 0.48, 0.6, -105, -180) + arc(0.52, 0.72, 0.28, 0.28, 180, 540)],
    ],
    "7": [
        [[(0.15, 0), (0.85, 0), (0.42, 1)]],
        [[(0.15, 0), (0.85, 0), (0.4, 1)], [(0.28, 0.5), (0.78, 0.5)]],
    ],
    "8": [
        [arc(0.5, 0.25, 0.26, 0.25, 90, -270) + arc(0.5, 0.75, 0.31, 0.25, -90, 270)],
        [arc(0.5, 0.26, 0.27, 0.26, -20, -330), arc(0.5, 0.76, 0.31, 0.25, -90, 270)],
    ],
    "9": [
        [arc(0.5, 0.28, 0.28, 0.28, 0, -360) + [(0.78, 0.3), (0.7, 1)]],
        [arc(0.5, 0.28, 0.28, 0.28, -15, -345) + [(0.78, 0.2), (0.77, 1)]],
    ],
}
OUTLINES = {
    "circle": [arc(0.5, 0.5, 0.48, 0.48, -90, 275)],
    "square": [[(0.08, 0.08), (0.92, 0.08), (0.92, 0.92), (0.08, 0.92), (0.08, 0.08)]],
    "triangle": [[(0.5, 0.05), (0.96, 0.92), (0.04, 0.92), (0.5, 0.05)]],
    "star": [
        [
            (0.5 + r * math.sin(k * math.pi / 5), 0.52 - r * math.cos(k * math.pi / 5))
            for k in range(11)
            for r in [(0.5, 0.2)[k % 2]]
        ]
    ],
}


def by_hand(rng, strokes, box):
    """Strokes in a box (left, top, width, height) of the paper, as a hand gives them."""
    slant, turn = rng.normal(0, 0.12), rng.normal(0, 0.06)
    cos, sin = math.cos(turn), math.sin(turn)
    drawn = []
    for stroke in strokes:
        points = np.array(stroke, dtype=float)
        steps = np.hypot(*np.diff(points, axis=0).T)
        along = np.concatenate([[0], np.cumsum(steps)])
        many = np.linspace(0, along[-1], 36)
        points = np.stack([np.interp(many, along, points[:, i]) for i in (0, 1)], 1)
        bends = rng.normal(0, 0.03, (8, 2))  # slow: a hand that is not quite sure
        places = np.linspace(0, 7, 36)
        points += np.stack(
            [np.interp(places, range(8), bends[:, i]) for i in (0, 1)], 1
        )
        points -= 0.5
        points[:, 0] -= slant * points[:, 1]
        points = points @ np.array([[cos, sin], [-sin, cos]]) + 0.5
        left, top, width, height = box
        points = points * (width, height) + (left, top)
        drawn.append(np.clip(np.round(2 * points) / 2, 0, SIDE).tolist())
    return drawn


def digit(rng, name, box):
    ways = DIGITS[name]
    return by_hand(rng, ways[rng.integers(len(ways))], box)


def cases(count, seed=0):
    """(group, marks, question, answer) of every drawing, `count` of each thing."""
    rng, colours = np.random.default_rng(seed), list(COLOURS)

    def one(strokes, colour):
        return [{"colour": colour, "points": points} for points in strokes]

    for _ in range(count):
        for name in DIGITS:
            height = rng.uniform(25, 100)
            width = height * rng.uniform(0.55, 0.8)
            corner = [rng.uniform(0, SIDE - length) for length in (width, height)]
            colour = colours[rng.integers(6)]
            marks = one(digit(rng, name, (*corner, width, height)), colour)
            yield "one digit", marks, "Which digit is this?", name
            yield (
                "one digit and its colour",
                marks,
                "What is in the picture?",
                f"{colour} {name}",
            )
    for _ in range(5 * count):
        names = [str(n) for n in rng.integers(0, 10, 3)]
        height, marks = rng.uniform(22, 40), []
        for place, name in enumerate(names):
            tall = height * rng.uniform(0.85, 1.15)
            width = min(tall * rng.uniform(0.55, 0.8), 30)
            left = 4 + 36 * place + rng.uniform(0, 34 - width)
            top = (SIDE - tall) / 2 + rng.uniform(-8, 8)
            marks += one(
                digit(rng, name, (left, top, width, tall)), colours[rng.integers(6)]
            )
        question = "Read the digits from left to right."
        yield "three digits", marks, question, " ".join(names)
    for _ in range(2 * count):
        for shape in SHAPES:
            colour, size = colours[rng.integers(6)], rng.uniform(24, 80)
            x, y = (rng.uniform(size / 2, SIDE - size / 2) for _ in range(2))
            mark = {"colour": colour, "shape": shape, "at": [x, y], "size": size}
            yield (
                "shape, filled",
                [mark],
                "What is in the picture?",
                f"{colour} {shape}",
            )
            box = (x - size / 2, y - size / 2, size, size)
            marks = one(by_hand(rng, OUTLINES[shape], box), colour)
            yield (
                "shape, outlined",
                marks,
                "What is in the picture?",
                f"{colour} {shape}",
            )


ANSWER = """async ({ marks, question }) => {
  const live = document.querySelector(".mllama-live").live;
  await live.ready();
  let text = "";
  const picture = mllama.fitted(marks);
  await live.write(picture, question, {}, ({ piece }) => { text += piece; });
  return [text, picture.toDataURL()];
}"""


def measure(count, seed=0, sheet=None, model=None):
    """For each group: (right, total), and what was taken for what; of the shipped model if none."""
    results, mistakes = {}, {}
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        live.write_site(Path(folder), model)
        address = live.write_page(
            Path(folder), "index", '<div class="mllama-live"></div>'
        )
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("[data-live=ask]")
        for number, (group, marks, question, answer) in enumerate(cases(count, seed)):
            got, picture = page.evaluate(ANSWER, {"marks": marks, "question": question})
            right, total = results.get(group, (0, 0))
            results[group] = right + (got == answer), total + 1
            if got != answer:
                mistakes.setdefault(group, Counter())[f"{answer} read as {got}"] += 1
            if sheet:
                name = f"{group.replace(' ', '_')}_{number}_{got == answer}.png"
                (Path(sheet) / name).write_bytes(
                    base64.b64decode(picture.split(",")[1])
                )
        browser.close()
    return results, mistakes


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=12, help="drawings of each digit")
    parser.add_argument("--seed", type=int, default=0, help="of the drawings")
    parser.add_argument("--model", type=Path, help="a folder, else the shipped model")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--sheet", help="an existing folder for the pictures")
    options = parser.parse_args()
    results, mistakes = measure(
        options.count, options.seed, options.sheet, options.model
    )
    for group, (right, total) in results.items():
        common = ", ".join(
            f"{m} ({n})" for m, n in mistakes.get(group, Counter()).most_common(5)
        )
        print(f"{group:26} {right / total:.3f} of {total}   {common}")
    if options.out:
        folder = options.model or find_folder()
        weights = (folder / "model.safetensors").read_bytes()
        figures = {
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "seed": options.seed,
            "right": results,
        }
        options.out.write_text(json.dumps(figures) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
