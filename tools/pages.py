"""Check the built book, as far as no browser is needed.

No page asks another host for anything; every picture has words (the still picture of a figure
stands below its text), and waits until it is near unless it is the first; every page has the
book's icon and name, KaTeX only if it has formulas, no icon that the font lacks, and at most
1.5 MB before a picture is scrolled to or the model is asked.

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
HEAVIEST = 1_500_000  # bytes, uncompressed
NAME = "Llama 3.2 Vision, from scratch"
ICONS = set(
    "angle-left angle-right arrow-up bars circle-half-stroke download expand file file-pdf list "
    "magnifying-glass moon sun xmark minus fast-backward step-backward play pause step-forward "
    "fast-forward plus rotate-180 solid lg".split()
)


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.problems = []
        self.files = []  # what is fetched at once
        self.pictures = 0
        self.said = {}  # names and values of <meta>, and the link to the icon
        self.formulas = False
        self.groups = []  # for each open div, whether it is a group with a name

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        target = attributes.get(FETCHED.get(tag)) or ""
        if OUTSIDE.match(target) and attributes.get("rel") not in NOT_FETCHED:
            self.problems.append(f"<{tag}> fetches {target}")
        classes = (attributes.get("class") or "").split()
        self.formulas |= "math" in classes
        for icon in {c[3:] for c in classes if c.startswith("fa-")} - ICONS:
            self.problems.append(f"the font of icons has no {icon}")
        if tag == "meta":
            self.said[attributes.get("property")] = attributes.get("content")
        if tag == "link" and attributes.get("rel") == "icon":
            self.said["icon"] = target
        if tag == "script" or attributes.get("rel") == "stylesheet":
            self.files.append(target)
        if tag == "img" and "still" not in classes:
            self.pictures += 1
            waits = attributes.get("loading") == "lazy"
            if waits is (self.pictures == 1):
                self.problems.append(f"<img> {self.pictures} waits: {waits}")
            if not waits:
                self.files.append(target)
        if tag == "div":
            self.groups.append(bool(attributes.get("aria-label")))
        named = attributes.get("alt") or any(self.groups) or "still" in classes
        if tag == "img" and not named:
            self.problems.append(f"<img> without alternative text: {target[:80]}")

    def handle_endtag(self, tag):
        if tag == "div" and self.groups:
            self.groups.pop()

    def check_whole(self, path):
        """What shows when the page has been read."""
        if not (self.said.get("icon") or "").endswith("favicon.svg"):
            self.problems.append("no icon")
        if self.said.get("og:site_name", NAME) != NAME:
            self.problems.append(f"site name is {self.said['og:site_name']}")
        if self.formulas != any("katex" in name for name in self.files):
            self.problems.append(
                f"KaTeX without formulas, or without it: {self.formulas=}"
            )
        names = [n.split("?")[0] for n in self.files if n and not n.startswith("data:")]
        names = [path.parent / name for name in names if not OUTSIDE.match(name)]
        weight = sum(name.stat().st_size for name in {path, *names})
        if weight > HEAVIEST:
            self.problems.append(f"{weight:,} bytes, more than {HEAVIEST:,}")


def check(root: Path) -> list[str]:
    problems = []
    for path in sorted(root.rglob("*.html")):
        page = Page()
        page.feed(path.read_text())
        if (
            "_static" not in path.parts
            and 'http-equiv="Refresh"' not in path.read_text()
        ):
            page.check_whole(path)
        problems += [f"{path.relative_to(root)}: {p}" for p in page.problems]
    for path in sorted(root.rglob("*.css")):
        problems += [
            f"{path.relative_to(root)}: {m.group()}"
            for m in OUTSIDE_CSS.finditer(path.read_text())
        ]
    return problems


if __name__ == "__main__":
    found = check(Path(sys.argv[1]))
    print("\n".join(found) or "The pages are as they should be.")
    sys.exit(bool(found))
