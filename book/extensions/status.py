"""Sphinx extension: a table of what each notebook took when it was run last.

`{notebook-status}` stands where the table is to be. `tools/notebooks.py --run` notes in a
notebook's metadata how long it ran, its memory, and on what.
"""

import json
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

HEAD = ["Notebook", "Cells", "Seconds", "Peak memory, MB"]
ON = "{machine}, {threads} thread(s), Python {python}, PyTorch {torch}"


def rows(folder: Path):
    """(cells of the table's row, what it was run on) of each notebook."""
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        took = notebook["metadata"]["mllama_lite"]["took"]
        cells = sum(cell["cell_type"] == "code" for cell in notebook["cells"])
        name = f"[{path.stem}](../notebooks/{path.name})"
        yield (
            [name, cells, took["seconds"], f"{took['memory_mb']:,}"],
            ON.format(**took),
        )


class NotebookStatus(Directive):
    def run(self):
        environment = self.state.document.settings.env
        folder = Path(environment.srcdir, "notebooks")
        for path in folder.glob("[0-9]*.ipynb"):
            environment.note_dependency(str(path))
        found = list(rows(folder))
        lines = [HEAD, ["---", *["--:"] * 3], *(row for row, _ in found)]
        text = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
        text += ["", "Run on: " + "; ".join(sorted({on for _, on in found})) + "."]
        parent = nodes.container()
        self.state.nested_parse(StringList(text, "notebook-status"), 0, parent)
        return parent.children


def setup(app):
    app.add_directive("notebook-status", NotebookStatus)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
