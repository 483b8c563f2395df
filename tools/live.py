"""Pack the shipped model for the page that runs it.

python tools/live.py book/assets/live/packed

A page that is opened from a folder may load scripts and nothing else, so all it needs comes
as scripts: `index.js` with the configuration, the tokenizer and the pictures, and the weights in
pieces, so that the page can show how far it is. They are model.safetensors to the bit: the file's
header, then the upper bytes of all bfloat16 numbers, which compress well beside each other, then
the lower ones; gzip, base64.
"""

import base64
import gzip
import json
import shutil
import struct
import sys
from pathlib import Path

from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.files import written_aside

PIECE = 1 << 18  # characters; a multiple of 4


def pack(file: bytes) -> tuple[int, str]:
    """Bytes of a safetensors file in bfloat16: (bytes of its header, packed as text)."""
    (length,) = struct.unpack("<Q", file[:8])
    start = 8 + length
    planes = file[:start] + file[start + 1 :: 2] + file[start::2]
    packed = gzip.compress(planes, mtime=0)
    return start, base64.b64encode(packed).decode()


def scripts(model: Path) -> dict[str, str]:
    """Name and text of every script for a folder of the hub's layout."""
    start, text = pack((model / "model.safetensors").read_bytes())
    pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
    pictures = {
        path.stem: "data:image/png;base64,"
        + base64.b64encode(path.read_bytes()).decode()
        for path in sorted((model / "pictures").glob("*.png"))
    }
    index = {
        "config": json.loads((model / "config.json").read_text(encoding="utf-8")),
        "tokenizer": (model / "tokenizer.model").read_text(encoding="utf-8"),
        "headerBytes": start,
        "numPieces": len(pieces),
        "pictures": pictures,
    }
    named = {f"{i}.js": f'mllama.pieces[{i}] = "{p}";\n' for i, p in enumerate(pieces)}
    return {"index.js": f"mllama.packed = {json.dumps(index)};\n", **named}


LIVE = Path(__file__).resolve().parent.parent / "book" / "assets" / "live"
PAGE = """<!DOCTYPE html><html lang="en"><meta charset="utf-8"><title>Live</title>
<body>{body}<script src="live/start.js"></script></body></html>
"""


def write_site(folder: Path, model: Path | None = None) -> None:
    """Put the scripts and a packed model, else the shipped one, into a folder for `write_page`."""
    shutil.copytree(LIVE, folder / "live", ignore=shutil.ignore_patterns("packed"))
    main(folder / "live" / "packed", model)


def write_page(folder: Path, name: str, body: str) -> str:
    """A page with nothing but a live model, figures or predictions; returns its address."""
    path = folder / f"{name}.html"
    path.write_text(PAGE.format(body=body), encoding="utf-8")
    return path.as_uri()


def main(target: Path, model: Path | None = None) -> None:
    target.mkdir(parents=True, exist_ok=True)
    wanted = scripts(model or find_folder())
    for path in target.glob("*.js"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        with written_aside(target / name) as part:
            part.write_text(text, encoding="utf-8")
    size = sum(map(len, wanted.values()))
    print(f"{target}: {size / 1e6:.2f} MB in {len(wanted)} scripts")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
