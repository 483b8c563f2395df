"""Sphinx extension: what this book needs beyond Jupyter Book.

A cell that opens with `#| export` loses its marker lines on the page and gains a label,
"goes into mllama_lite/rope.py". The markers are those of tools/notebooks.py.

The alternative text of a cell (`mystnb.image.alt`) reaches only images in MyST-NB. Here it
also names the group of outputs that hold an animation, a widget or inline SVG.

Pages ask no other host for anything: the link to a CDN that Matplotlib writes into an
animation is dropped; the theme brings the same icons.

Docstrings on the API page are read as prose with `code` in backticks, as their authors mean
them, and not as reStructuredText.

A page brings what it uses and no more: KaTeX where there is a formula, the scripts of the
live model where there is one, the styles of tabs and cards where there are any. Pictures after
the first are fetched when they are near. Names and commas in code, which have the colour of
all text, are not wrapped in elements of their own, which halves the code's HTML.

What Sphinx writes and a screen reader cannot make sense of is put right: see `mend`.
"""

import re

from docutils import nodes

# What Jupyter Book loads on every page, and what is on a page that needs it. No page needs
# sphinx-thebe: its script raises an error where there is no launch button. The formulas that
# Sphinx writes for MathJax are drawn by KaTeX.
LOADED = {"thebe": None, "athjax": None, "sphinx-design": "sd-", "design-tabs": "sd-"}
MATH = re.compile(r'class="[^"]*\bmath\b')
PLAIN = re.compile(r'<span class="[npw]">([^<]*)</span>')

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
    if MATH.search(body):
        app.add_css_file("vendor/katex/katex.min.css")
        app.add_js_file("vendor/katex/katex.min.js", loading_method="defer")
        app.add_js_file("formulas.js", loading_method="defer")
    if 'class="mllama-' in body:
        source = context["pathto"]("_static/live/start.js", 1)
        body = f'{body}\n<script src="{source}"></script>\n'
    context["body"] = body


def is_used(asset, body):
    names = [name for name in LOADED if name in str(asset)]
    return all(LOADED[name] and f'class="{LOADED[name]}' in body for name in names)


def setup(app):
    app.connect("doctree-read", label_exported_cells)
    app.connect(
        "autodoc-process-docstring", read_as_prose, priority=400
    )  # before napoleon
    app.connect("html-page-context", write_page, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
