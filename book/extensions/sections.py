"""Sphinx extension: an index of sections, which the search page searches.

Sphinx's own search finds pages, takes no numbers and cuts words down to stems. Here every section
is kept with its words as they are, commas inside numbers left out (128,256 is 128256), and every
term of the glossary by itself; of code that is exported, its names and docstrings. search.js on
the search page does the rest. The index is a script, as a page that is opened from a folder may
load nothing else: gzip, base64.
"""

import ast
import base64
import gzip
import json
import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

COMMAS = re.compile(r"(?<=\d),(?=\d{3}\b)")
SPACE = re.compile(r"\s+")


def plain(text: str) -> str:
    return COMMAS.sub("", SPACE.sub(" ", text)).strip()


def heading(node: nodes.Node) -> nodes.title | None:
    """A section's own title; what an exercise is put into has none."""
    return next((c for c in node.children if isinstance(c, nodes.title)), None)


def definition(desc: addnodes.desc) -> str:
    """A definition of the API: its signature and first sentences, and so for its parts.

    The rest of a docstring stands in the chapter that exports it, and is found there.
    """
    parts = [s.astext() for s in desc.findall(addnodes.desc_signature)][:1]
    for content in desc.children:
        if isinstance(content, addnodes.desc_content):
            first = next(
                (c for c in content.children if isinstance(c, nodes.paragraph)), None
            )
            parts.append(first.astext() if first else "")
            inner = (c for c in content.children if isinstance(c, addnodes.desc))
            parts += [definition(one) for one in inner]
    return " ".join(parts)


def is_exported(cell: nodes.container) -> bool:
    """Whether a cell's code goes into the package, see exported.py."""
    paragraphs = cell.findall(nodes.paragraph)
    return any("exported-to" in p.get("classes", ()) for p in paragraphs)


def outline(code: str) -> str:
    """What exported code is called and what it says of itself, without its statements."""
    parts: list[str] = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            parts.append(node.name)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Module)):
            parts.append(ast.get_docstring(node) or "")
        elif isinstance(node, ast.arg):
            parts.append(node.arg)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            parts += [one.id for one in targets if isinstance(one, ast.Name)]
    return " ".join(parts)


def own_text(section: nodes.Node) -> str:
    """All text of a section that belongs to no titled section below it."""
    parts = []
    for child in section.children:
        if isinstance(child, nodes.section):
            parts += [] if heading(child) else [own_text(child)]
        elif isinstance(child, addnodes.desc):
            parts.append(definition(child))
        elif isinstance(child, nodes.container) and is_exported(child):
            parts.append(outline(next(child.findall(nodes.literal_block)).astext()))
        elif isinstance(child, nodes.raw):
            parts.append(re.sub(r"<[^>]*>", " ", child.astext()))
        elif not isinstance(child, nodes.title):
            parts.append(child.astext())
    return plain(" ".join(parts))


def entries(doctree: nodes.Node, page: str):
    """(place, page's title, section's title, text) of everything that can be found."""
    head = doctree.next_node(nodes.title)
    title = plain(head.astext()) if head else page
    for section in doctree.findall(nodes.section):
        if name := heading(section):
            place = f"{page}.html#{section['ids'][0]}"
            yield place, title, plain(name.astext()), own_text(section)
    for term in doctree.findall(nodes.term):
        if term["ids"]:
            meaning = term.parent.next_node(nodes.definition)
            text = plain(meaning.astext()) if meaning else ""
            yield f"{page}.html#{term['ids'][0]}", title, plain(term.astext()), text


def collect(app, doctree, page):
    app.sections[page] = list(entries(doctree, page))


def write(app, exception):
    if exception or app.builder.format != "html":
        return
    order = {
        page: n for n, page in enumerate(app.env.toctree_includes.get("book/intro", []))
    }
    pages = sorted(app.sections, key=lambda page: (order.get(page, 999), page))
    found = [one for page in pages for one in app.sections[page]]
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    Path(app.outdir, "_static", "sections.js").write_text(
        f'const SECTIONS = "{packed}";\n'
    )


def setup(app):
    app.sections = {}
    app.connect("doctree-resolved", collect)
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": False}
