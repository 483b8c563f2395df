"""Sphinx extension: the first time a term of the glossary stands on a page, it links there.

The terms are those of book/glossary.md. Only running text is looked at: no headings, no code, no
links, nothing that is already marked up. A plural with s is the same term.
"""

import re
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

KEPT = (
    nodes.reference,
    nodes.literal,
    nodes.title,
    nodes.caption,
    addnodes.pending_xref,
)
PAGES = (
    "book/glossary",
    "book/bibliography",
    "book/api",
    "book/api_roads",
    "book/proven",
)


def terms_of(source: str) -> list[str]:
    """The terms of a page with a glossary directive: its lines without indent."""
    inside = re.search(r"^```\{glossary\}\n(.*?)^```", source, re.M | re.S)
    lines = inside[1].splitlines() if inside else []
    return [line for line in lines if line and not line.startswith(" ")]


def pattern_of(terms: list[str]) -> re.Pattern:
    longest = sorted(terms, key=len, reverse=True)
    words = "|".join(re.escape(term).replace(r"\ ", r"\s+") for term in longest)
    return re.compile(rf"(?<![\w-])({words})(s?)(?![\w-])", re.IGNORECASE)


def link_terms(app, doctree):
    if app.env.docname in PAGES:
        return
    known = {term.lower(): term for term in app.glossary_terms}
    left = set(known)
    for text in list(doctree.findall(nodes.Text)):
        if not left:
            break
        if not isinstance(text.parent, nodes.paragraph) or inside(text, KEPT):
            continue
        parts, end = [], 0
        for match in app.glossary_pattern.finditer(text):
            term = re.sub(r"\s+", " ", match[1].lower())
            if term not in left:
                continue
            left.remove(term)
            parts += [
                nodes.Text(text[end : match.start()]),
                link(app, known[term], match[0]),
            ]
            end = match.end()
        if parts:
            text.parent.replace(text, [*parts, nodes.Text(text[end:])])


def inside(node, kinds) -> bool:
    while node := node.parent:
        if isinstance(node, kinds):
            return True
    return False


def link(app, term: str, shown: str):
    return addnodes.pending_xref(
        "",
        nodes.inline(shown, shown, classes=["glossary-term"]),
        refdoc=app.env.docname,
        refdomain="std",
        reftype="term",
        reftarget=term,
        refexplicit=True,
        refwarn=True,
    )


def read_terms(app):
    source = (Path(app.srcdir) / "book" / "glossary.md").read_text(encoding="utf-8")
    app.glossary_terms = terms_of(source)
    app.glossary_pattern = pattern_of(app.glossary_terms)


def setup(app):
    app.connect("builder-inited", read_terms)
    app.connect("doctree-read", link_terms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
