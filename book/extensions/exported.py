"""Sphinx extension: what this book needs beyond Jupyter Book.

A cell that opens with `#| export` loses its marker lines on the page and gains a label,
"goes into mllama_lite/rope.py". The markers are those of tools/notebooks.py.

The alternative text of a cell (`mystnb.image.alt`) reaches only images in MyST-NB. Here it
also names the group of outputs that hold an animation, a widget or inline SVG.

Pages ask no other host for anything: the link to a CDN that Matplotlib writes into an
animation is dropped; the theme brings the same icons.

Docstrings on the API page are read as prose with `code` in backticks, as their authors mean
them, and not as reStructuredText.
"""

import re

from docutils import nodes

OUTSIDE_LINK = re.compile(r"<link\b[^>]*href=[\"']?https?://[^>]*>\s*")


def split_markers(source):
    lines = source.split("\n")
    markers = []
    while lines and lines[0].startswith("#|"):
        markers.append(lines.pop(0)[2:].split())
    return markers, "\n".join(lines).strip("\n")


def label_exported_cells(app, doctree):
    default = None
    for cell in list(doctree.findall(nodes.container)):
        if cell.get("nb_element") != "cell_code":
            continue
        for raw in list(cell.findall(nodes.raw)):
            if OUTSIDE_LINK.search(raw.astext()):
                html = OUTSIDE_LINK.sub("", raw.astext())
                raw.replace_self(nodes.raw("", html, **raw.non_default_attributes()))
        name_group(cell)
        block = next(iter(cell.findall(nodes.literal_block)), None)
        if block is None or not block.astext().startswith("#|"):
            continue
        markers, code = split_markers(block.astext())
        targets = []
        for marker in markers:
            if marker[:1] == ["default_exp"]:
                default = marker[1]
            elif marker[:1] == ["export"]:
                targets.append(marker[1] if len(marker) > 1 else default)
        if not code and len(cell.children) == 1:
            cell.parent.remove(cell)
            continue
        block.rawsource = code  # Sphinx highlights a block whose text is its rawsource
        block.children = []
        block += nodes.Text(code)
        for target in targets:
            label = nodes.paragraph(classes=["exported-to"])
            label += nodes.Text("goes into ")
            label += nodes.literal(text=f"mllama_lite/{target}.py")
            block.parent.insert(0, label)


def name_group(cell):
    """Wrap outputs that MyST-NB gives no alternative text to in a named group."""
    alt = cell.get("cell_metadata", {}).get("mystnb", {}).get("image", {}).get("alt")
    outputs = [n for n in cell.children if n.get("nb_element") == "cell_code_output"]
    if not (alt and outputs) or next(iter(outputs[0].findall(nodes.image)), None):
        return
    escaped = alt.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    outputs[0].insert(
        0, nodes.raw("", f'<div role="group" aria-label="{escaped}">', format="html")
    )
    outputs[0] += nodes.raw("", "</div>", format="html")


def read_as_prose(app, what, name, obj, options, lines):
    for number, line in enumerate(lines):
        parts = re.split(r"(`+[^`]*`+)", line)
        parts[::2] = [re.sub(r"[|*]", r"\\\g<0>", part) for part in parts[::2]]
        lines[number] = "".join(parts)
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # else napoleon takes what precedes a colon for a type


def setup(app):
    app.connect("doctree-read", label_exported_cells)
    app.connect(
        "autodoc-process-docstring", read_as_prose, priority=400
    )  # before napoleon
    return {"parallel_read_safe": True, "parallel_write_safe": True}
