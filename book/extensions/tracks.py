"""Sphinx extension: two tracks through a chapter, and how long each takes.

Sections that check, that carry things from place to place or that count for the 11B fold; what
is left is the whole argument. A fold says what is in it. Of a long cell that goes into the
package the beginning is shown, with its docstring; the rest opens. Below the title of a chapter
stands how long it takes to read without the exercises, counted as words / 200 and lines of code /
20, in minutes; code that is hidden counts as folded. In print everything is open.
"""

import re

from docutils import nodes

# Sections by their titles, of all chapters; what is below them folds with them.
FOLDED = {
    "check": [
        r"The check\b.*",
        r"Against .*",
        r"To transformers and back",
        r"With the cache and without: the same",
        r"A text-only Llama",
        r"Memory, measured",
        r"Beside PEFT",
    ],
    "plumbing": [
        r"A constant that should be a setting",
        r"A folder for one training",
        r"A stream never shows half a character",
        r"(Conversation|Recipe|Trainer|VLM|finetune), whole",
        r"Files",
        r"From a name to a model",
        r"From entries to sizes",
        r"From the hub",
        r"How an archive is opened",
        r"How it was measured",
        r"Leaving masked tiles out changes nothing",
        r"Opening a file as a viewer shows it",
        r"Reading it",
        r"Rows and a picture of the loss",
        r"Rows of different lengths",
        r"Saving",
        r"Scoring a text",
        r"Several processes, and in which numbers",
        r"Text beside images in one batch",
        r"Very long texts",
        r"What cannot be done",
        r"What cannot be used",
        r"What has changed, in words",
        r"What logits_at saves",
        r"Written whole or not at all",
    ],
    "size": [r"At full size"],
}
NAMES = {"check": "A check", "plumbing": "Plumbing", "size": "Counts of the 11B"}
MANY = {"check": "checks", "plumbing": "plumbing", "size": "counts of the 11B"}
LONG, SHOWN = 40, 24  # lines of code; --code-shown in book.css is the second


def kind_of(title: str) -> str | None:
    for kind, patterns in FOLDED.items():
        if any(re.fullmatch(pattern, title) for pattern in patterns):
            return kind
    return None


def counted(root: nodes.Node) -> tuple[int, int]:
    """(words of prose, lines of code that a reader reads) below a node."""
    words = lines = 0
    for node in root.findall(nodes.Text):
        if not inside(node, root, nodes.literal_block):
            words += len(node.astext().split())
    for cell in root.findall(nodes.container):
        if cell.get("nb_element") == "cell_code_source":
            lines += sum(
                b.astext().count("\n") + 1 for b in cell.findall(nodes.literal_block)
            )
    return words, lines


def inside(node: nodes.Node, root: nodes.Node, kind: type) -> bool:
    while (node := node.parent) is not None and node is not root:
        if isinstance(node, kind):
            return True
    return False


def minutes(words: int, lines: int) -> float:
    return words / 200 + lines / 20


def code_cells(root: nodes.Node):
    """(cell, lines of its code) of the code cells below a node."""
    for cell in root.findall(nodes.container):
        if cell.get("nb_element") == "cell_code_source":
            block = next(iter(cell.findall(nodes.literal_block)), None)
            if block is not None:
                yield cell, block.astext().strip("\n").split("\n")


def fold_long_code(app, doctree):
    """Below a long cell that is exported: what opens the rest of it."""
    for cell, lines in code_cells(doctree):
        exported = any("exported-to" in n.get("classes", ()) for n in cell.children)
        if exported and len(lines) > LONG:
            cell["classes"].append("long-code")
            told = f"All {len(lines)} lines"
            opening = f'<details class="more"><summary>{told}</summary></details>'
            cell += nodes.raw("", opening, format="html")


def below_the_fold(root: nodes.Node) -> int:
    """Lines of code that are not shown until they are opened."""
    kept = 0
    for cell, lines in code_cells(root):
        within = (p for p in parents(cell) if p.get("folded") or is_exercises(p))
        if next(within, None) is not None:
            continue
        count = sum(not line.startswith("#|") for line in lines)
        if "tag_hide-input" in cell.parent["classes"]:
            kept += count  # what draws a picture
        elif lines[0].startswith("#| export") and count > LONG:
            kept += count - SHOWN
    return kept


def is_exercises(section: nodes.section) -> bool:
    title = section.next_node(nodes.title)
    return title in section.children and title.astext() == "Exercises"


def fold(app, doctree):
    if not app.env.docname.startswith("notebooks/"):
        return
    sections = list(doctree.findall(nodes.section))
    tasks = [section for section in sections if is_exercises(section)]
    whole = minutes(*counted(doctree)) - sum(minutes(*counted(s)) for s in tasks)
    folded, kinds = 0.0, set()
    for section in sections:
        if any(p.get("folded") for p in parents(section)):
            continue
        title = section.next_node(nodes.title)
        kind = kind_of(title.astext()) if title in section.children else None
        if kind is None:
            continue
        section["folded"] = True
        kinds.add(kind)
        words, lines = counted(section)
        folded += minutes(words, lines)
        told = f"{NAMES[kind]}: {words:,} words, {lines} lines of code, "
        told += f"about {max(1, round(minutes(words, lines)))} minutes"
        place = section.index(title) + 1
        opening = f'<details class="track track-{kind}"><summary>{told}</summary>'
        section.insert(place, nodes.raw("", opening, format="html"))
        section += nodes.raw("", "</details>", format="html")
    lines = below_the_fold(doctree)
    folded += lines / 20
    title = doctree.next_node(nodes.title)
    if title is None:
        return
    text = f"About {round(whole - folded)} minutes to read"
    if tasks:
        text += " without the exercises"
    if folded:
        what = [MANY[kind] for kind in MANY if kind in kinds] + ["code"] * (lines > 0)
        text += f", and {round(folded)} more for what is folded: {', '.join(what)}"
    line = nodes.paragraph("", f"{text}.", classes=["reading-time"])
    title.parent.insert(title.parent.index(title) + 1, line)


def parents(node: nodes.Node):
    while (node := node.parent) is not None:
        if isinstance(node, nodes.section):
            yield node


def setup(app):
    # Before the glossary links its terms: a fold changes nothing in the text.
    app.connect("doctree-read", fold, priority=400)
    # After exported cells have their labels.
    app.connect("doctree-read", fold_long_code, priority=600)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
