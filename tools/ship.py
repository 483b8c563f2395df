"""Put a trained model into the package, with the pictures that are shown with it.

    python tools/ship.py trained/first trained/drawings trained/rows trained/numbers

Takes what `make model` left behind, training after training: the last folder's model goes
to mllama_lite/small, what each training wrote down to notebooks/measured/history/. The
example pictures are drawn from scans that were never trained on; the picture of where the
model looks, which README.md shows, is made by the model itself.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np

from mllama_lite.attention_maps import draw_looks, look
from mllama_lite.small_model.scenes import draw_scene, load_masks
from mllama_lite.vlm import load

ROOT = Path(__file__).resolve().parent.parent
SMALL = ROOT / "mllama_lite" / "small"
HISTORY = ROOT / "notebooks" / "measured" / "history"
ATTENTION = ROOT / "book" / "assets" / "attention.png"
# name: (number of things, canvas). The seed is the first that draws so many, each of
# another kind and colour, on a picture large enough to look at.
PICTURES = {
    "digits": (3, (1, 3)),
    "mixed": (4, (2, 2)),
    "tall": (3, (3, 1)),
    "one": (1, (2, 2)),
}
QUESTION = "Read the digits from left to right."


def example(name):
    """One of the example pictures: the Scene, drawn anew."""
    number, canvas = PICTURES[name]
    masks = load_masks("validation")
    for seed in range(10_000):
        scene = draw_scene(np.random.default_rng(seed), masks, number, canvas=canvas)
        kinds = {thing.kind for thing in scene.things}
        colours = {thing.colour for thing in scene.things}
        digits = len(scene.digits) == number - (name == "mixed")
        if (
            len(kinds) == len(colours) == number
            and digits
            and min(scene.image.size) > 110
        ):
            return scene


def thinned(history, every=4):
    """Every fourth entry and all that carry a measurement, numbers shortened."""
    kept = [
        entry
        for i, entry in enumerate(history, start=1)
        if i % every == 0 or "validation" in entry
    ]
    return json.loads(
        json.dumps(kept), parse_float=lambda text: float(f"{float(text):.5g}")
    )


def main():
    folders = [Path(name) for name in sys.argv[1:]]
    if not folders:
        sys.exit(__doc__)
    (SMALL / "pictures").mkdir(parents=True, exist_ok=True)
    for path in folders[-1].iterdir():
        if path.name not in ("training.pt", "history.json") and path.is_file():
            shutil.copyfile(path, SMALL / path.name)
    HISTORY.mkdir(parents=True, exist_ok=True)
    for folder in folders:
        history = thinned(json.loads((folder / "history.json").read_text()))
        lines = ",\n".join(json.dumps(entry) for entry in history)
        (HISTORY / f"{folder.name}.json").write_text(f"[\n{lines}\n]\n")
    for name in PICTURES:
        example(name).image.save(SMALL / "pictures" / f"{name}.png")
    vlm = load(device="cpu")
    looks = look(vlm, QUESTION, SMALL / "pictures" / "digits.png")
    draw_looks(looks, vlm.config.vision).save(ATTENTION)
    print(f"{SMALL}: {looks.answer!r} to {QUESTION!r}")


if __name__ == "__main__":
    main()
