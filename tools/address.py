"""Tell the book at which address its repository lies, so that notebooks open on Colab and Kaggle.

    python tools/address.py https://github.com/OWNER/NAME    then: make notebooks book
    python tools/address.py ""                               takes it out again

Sets `notebooks_address` in _config.yml, from which pages get their buttons, and gives every
notebook a first cell that fetches the repository where the notebook is alone. Until then there is
neither.
"""

import re
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
SETTING = re.compile(r'^(    notebooks_address: )"[^"]*"', re.M)
ID = "fetch"
# What Colab and Kaggle do not have, or have in another version than the chapters compare with.
NEEDED = (
    "tiktoken safetensors pillow llama-models fairscale transformers peft datasets "
    "accelerate psutil regex ipywidgets"
).split()
FETCH = """# Where this notebook is alone, as on Colab or Kaggle, what it needs is fetched.
import os
import subprocess
import sys

if not os.path.exists("figures.py"):
    run = lambda *words: subprocess.run(words, check=True)
    run("git", "clone", "-q", "--depth", "1", "{address}", "llama-vision")
    os.chdir("llama-vision/notebooks")
    sys.path.insert(0, os.getcwd())
    pins = {pins}
    run(sys.executable, "-m", "pip", "install", "-q", *pins)
    run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "-e", "..")
    sys.path.insert(0, os.path.dirname(os.getcwd()))
"""


def pins(requirements: str) -> list[str]:
    """The lines of requirements.txt that a hosted notebook needs."""
    lines = requirements.splitlines()
    return [line for line in lines if line.split("==")[0] in NEEDED]


def set_address(root: Path, address: str) -> None:
    """Write an address, or take it out where it is empty."""
    if address and not re.fullmatch(r"(https|file)://\S+[^/\s]", address):
        raise SystemExit(
            f"The address is {address!r}: expected that of a repository, such as "
            "https://github.com/owner/name; give it without a slash at the end."
        )
    config = root / "_config.yml"
    text, count = SETTING.subn(rf'\g<1>"{address}"', config.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit(f"{config} has no line for notebooks_address: expected one.")
    config.write_text(text, encoding="utf-8")
    wanted = pins((root / "requirements.txt").read_text(encoding="utf-8"))
    for path in sorted((root / "notebooks").glob("[0-9]*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        notebook.cells = [cell for cell in notebook.cells if cell.id != ID]
        if address:
            cell = nbformat.v4.new_code_cell(FETCH.format(address=address, pins=wanted))
            cell.id, cell.metadata["tags"] = ID, ["remove-cell"]
            notebook.cells.insert(0, cell)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    set_address(ROOT, sys.argv[1])
