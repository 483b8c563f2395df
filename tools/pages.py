"""Check the built book: no page asks another host for anything, and every picture has words.

python tools/pages.py _build/html
"""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

# What a browser fetches by itself, and the attribute that says from where. A link that a
# reader clicks may lead anywhere.
FETCHED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
}
OUTSIDE = re.compile(r"(https?:)?//")
OUTSIDE_CSS = re.compile(r"(@import\s+[\"']|url\(\s*[\"']?)(https?:)?//[^)\"']*")
NOT_FETCHED = {"canonical", "next", "prev", "search", "index", "author", "license"}


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.problems = []
        self.groups = []  # for each open div, whether it is a group with a name

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        target = attributes.get(FETCHED.get(tag)) or ""
        if OUTSIDE.match(target) and attributes.get("rel") not in NOT_FETCHED:
            self.problems.append(f"<{tag}> fetches {target}")
        if tag == "div":
            self.groups.append(bool(attributes.get("aria-label")))
        if tag == "img" and not (attributes.get("alt") or any(self.groups)):
            self.problems.append(f"<img> without alternative text: {target[:80]}")

    def handle_endtag(self, tag):
        if tag == "div" and self.groups:
            self.groups.pop()


def check(root: Path) -> list[str]:
    problems = []
    for path in sorted(root.rglob("*.html")):
        page = Page()
        page.feed(path.read_text())
        problems += [f"{path.relative_to(root)}: {p}" for p in page.problems]
    for path in sorted(root.rglob("*.css")):
        problems += [
            f"{path.relative_to(root)}: {m.group()}"
            for m in OUTSIDE_CSS.finditer(path.read_text())
        ]
    return problems


if __name__ == "__main__":
    found = check(Path(sys.argv[1]))
    print("\n".join(found) or "No page asks another host for anything.")
    sys.exit(bool(found))
