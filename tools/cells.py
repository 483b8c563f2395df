"""Print a notebook's cells as text, for `git diff`: no outputs, no counts.

git config diff.jupyternotebook.textconv "python3 tools/cells.py"
"""

import json
import sys
from pathlib import Path


def as_text(path: str) -> str:
    """The cells one after another, each under a line with its id and its kind."""
    cells = json.loads(Path(path).read_text(encoding="utf-8"))["cells"]
    pieces = (
        f"# %% {cell.get('id', '')} {cell['cell_type']}\n{''.join(cell['source'])}\n"
        for cell in cells
    )
    return "\n".join(pieces)


if __name__ == "__main__":
    sys.stdout.write(as_text(sys.argv[1]))
