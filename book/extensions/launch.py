"""Sphinx extension: buttons that open a chapter on Colab or Kaggle, once the book has an address.

`notebooks_address` in _config.yml is set by tools/address.py; while it is empty, there are no
buttons.
"""

COLAB = "https://colab.research.google.com/github/{place}"
KAGGLE = "https://kaggle.com/kernels/welcome?src=https://github.com/{place}"
HOST = "https://github.com/"


def links(address: str, pagename: str) -> dict[str, str]:
    """Name and address of each button of a page."""
    if not address.startswith(HOST) or not pagename.startswith("notebooks/"):
        return {}
    place = f"{address.removeprefix(HOST)}/blob/main/{pagename}.ipynb"
    return {
        "Open in Colab": COLAB.format(place=place),
        "Open in Kaggle": KAGGLE.format(place=place),
    }


def add_buttons(app, pagename, templatename, context, doctree):
    found = links(app.config.notebooks_address, pagename)
    if found:
        parts = [
            f'<a class="launch" href="{link}">{name}</a>'
            for name, link in found.items()
        ]
        head, end, rest = context["body"].partition("</h1>")
        context["body"] = f'{head}{end}<p class="launches">{" ".join(parts)}</p>{rest}'


def setup(app):
    app.add_config_value("notebooks_address", "", "html")
    app.connect("html-page-context", add_buttons, priority=800)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
