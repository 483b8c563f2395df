"""Draw the emoji that chapter 14 teaches: one sheet for each designer, from icon sets.

    npm pack @iconify-json/{noto,twemoji,openmoji,fluent-emoji-flat}
    pip install resvg-py
    python tools/emoji.py FOLDER             the folder with the four archives

Taken is everything in Unicode's group "Food & Drink" whose name is one word and which
all four have drawn: no choice of ours. Written are names.txt, and for each designer a
PNG of 14 columns with a drawing of 112 pixels for each name, row by row; their licences
are in notebooks/emoji/README.md.
"""

import io
import json
import sys
import tarfile
from pathlib import Path

from PIL import Image

DESIGNERS = ("noto", "twemoji", "openmoji", "fluent-emoji-flat")
GROUP = "Food & Drink"
SIDE, COLUMNS = 112, 14
OUT = Path(__file__).resolve().parent.parent / "notebooks" / "emoji"


def read_set(folder, designer):
    """(icons, metadata) of one icon set: the parsed files of its archive."""
    found = sorted(Path(folder).glob(f"iconify-json-{designer}-[0-9]*.tgz"))
    if not found:
        sys.exit(
            f"{folder} has no archive of {designer}: expected one as `npm pack "
            f"@iconify-json/{designer}` writes it; run that there."
        )
    with tarfile.open(found[-1]) as archive:
        names = ("package/icons.json", "package/metadata.json")
        return [json.load(archive.extractfile(name)) for name in names]


def draw(icons, name):
    """One icon as an RGBA image of SIDE by SIDE pixels."""
    import resvg_py

    icon = icons["icons"][name]
    width, height = (icon.get(key) or icons.get(key, 16) for key in ("width", "height"))
    left, top = icon.get("left", 0), icon.get("top", 0)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


def main(folder):
    sets = {designer: read_set(folder, designer) for designer in DESIGNERS}
    names = sorted(
        name
        for name in sets["noto"][1]["categories"][GROUP]
        if name.isalpha() and all(name in icons["icons"] for icons, _ in sets.values())
    )
    OUT.mkdir(exist_ok=True)
    (OUT / "names.txt").write_text("\n".join(names) + "\n")
    for designer, (icons, _) in sets.items():
        rows = -(-len(names) // COLUMNS)
        sheet = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE))
        for i, name in enumerate(names):
            place = (i % COLUMNS * SIDE, i // COLUMNS * SIDE)
            sheet.paste(draw(icons, name), place)
        # 256 colours for a whole sheet are enough for flat drawings.
        sheet.quantize(256, method=Image.Quantize.FASTOCTREE).save(
            OUT / f"{designer}.png", optimize=True
        )
    print(f"{len(names)} names, {len(sets)} designers, written to {OUT}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
