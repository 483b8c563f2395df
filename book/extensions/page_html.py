"""Sphinx extension: what a page of HTML brings, and how it is written.

A page brings what it uses and no more: KaTeX where there is a formula, the scripts of the
live model where there is one, the styles of tabs and cards where there are any. Pictures after
the first are fetched when they are near. Names and commas in code, which have the colour of
all text, are not wrapped in elements of their own, which saves a third of a chapter's HTML.

What Sphinx writes and a screen reader cannot make sense of is put right: see `mend`.
"""

import re
from pathlib import Path

# What Jupyter Book loads on every page, and what is on a page that needs it. No page needs
# sphinx-thebe: its script raises an error where there is no launch button. The formulas that
# Sphinx writes for MathJax are drawn by KaTeX.
LOADED = {"thebe": None, "athjax": None, "sphinx-design": "sd-", "design-tabs": "sd-"}
MATH = re.compile(r'class="[^"]*\bmath\b')
# The map that opens a chapter has links to notebooks, which are pages here.
NOTEBOOK = re.compile(r'<a href="(\d\d_\w+)\.ipynb">(?=<rect)')
# What stands where a figure would move: its text, and below it a still picture (tools/stills.py).
FIGURE = re.compile(
    r'(<div class="mllama-figure" data-figure="(\w+)">.*?)(</div>)', re.S
)
STILLS = Path(__file__).resolve().parent.parent / "assets" / "stills"
PLAIN = re.compile(r'<span class="(?:[npw]|nn)">([^<]*)</span>')


def mend(body):
    """HTML without the faults that Sphinx and docutils write into it.

    The lines of a long signature are a list of descriptions without terms; the list of
    citations has no items; a table's empty corner is a heading.
    """
    body = re.sub(
        r'<dt class="sig .*?</dt>',
        lambda match: mend_signature(match[0]),
        body,
        flags=re.S,
    )
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    return re.sub(r'<th class="head"><p></p></th>', '<td class="head"></td>', body)


def mend_signature(html):
    html = re.sub(r'<span class="pre">([^<]*)</span>', r"\1", html)
    html = html.replace("<dl>", '<span class="sig-lines">').replace("</dl>", "</span>")
    return html.replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")


def lighten(body):
    """HTML with pictures that wait, and without elements that change nothing."""
    body = PLAIN.sub(r"\1", body)
    first, *others = re.split(r"(?=<img )", body)
    later = [re.sub("^<img ", '<img loading="lazy" ', img) for img in others[1:]]
    return "".join([first, *others[:1], *later])


def write_page(app, pagename, templatename, context, doctree):
    body = lighten(mend(context.get("body") or ""))
    for kind in ("script_files", "css_files"):
        context[kind][:] = [asset for asset in context[kind] if is_used(asset, body)]
    body = FIGURE.sub(lambda match: with_still(match, context["pathto"]), body)
    body = NOTEBOOK.sub(r'<a href="\1.html">', body)
    if MATH.search(body):
        app.add_css_file("vendor/katex/katex.min.css")
        app.add_js_file("vendor/katex/katex.min.js", loading_method="defer")
        app.add_js_file("formulas.js", loading_method="defer")
    if 'class="mllama-' in body:
        source = context["pathto"]("_static/live/start.js", 1)
        body = f'{body}\n<script src="{source}"></script>\n'
    context["body"] = body


def with_still(match, pathto):
    """A figure's place with its still picture, where there is one."""
    picture = STILLS / f"{match[2]}.svg"
    if not picture.is_file():
        return match[0]
    source = pathto(f"_static/stills/{picture.name}", 1)
    return (
        f'{match[1]}<img class="still" loading="lazy" alt="" src="{source}">{match[3]}'
    )


def is_used(asset, body):
    names = [name for name in LOADED if name in str(asset)]
    return all(LOADED[name] and f'class="{LOADED[name]}' in body for name in names)


def setup(app):
    app.connect("html-page-context", write_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
