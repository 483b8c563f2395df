"""Sphinx extension: a table of what each notebook took when it was run last.

`{notebook-status}` stands where the table is to be. `tools/notebooks.py --run` notes in a
notebook's metadata how long it ran, its memory, and on what.
"""

import json
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

HEAD = [
    "Notebook",
    "Cells",
    "Seconds",
    "Peak memory, MB",
    "PyTorch",
    "Python",
    "Machine, threads",
]


def rows(folder: Path):
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        took = notebook["metadata"]["mllama_lite"].get("took")
        cells = sum(cell["cell_type"] == "code" for cell in notebook["cells"])
        name = f"[{path.stem}](../notebooks/{path.name})"
        if took is None:
            yield [name, cells, *["not noted"] * 5]
            continue
        machine = f"{took['machine']}, {took['threads']}"
        yield [
            name,
            cells,
            took["seconds"],
            f"{took['memory_mb']:,}",
            took["torch"],
            took["python"],
            machine,
        ]


class NotebookStatus(Directive):
    def run(self):
        environment = self.state.document.settings.env
        folder = Path(environment.srcdir, "notebooks")
        for path in folder.glob("[0-9]*.ipynb"):
            environment.note_dependency(str(path))
        lines = [HEAD, ["---"] * len(HEAD), *rows(folder)]
        text = ["| " + " | ".join(map(str, line)) + " |" for line in lines]
        parent = nodes.container()
        self.state.nested_parse(StringList(text, "notebook-status"), 0, parent)
        return parent.children


def setup(app):
    app.add_directive("notebook-status", NotebookStatus)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
