"""Print the built book: every page in the order of _toc.yml, in one PDF.

    python tools/pdf.py _build/html _build/llama-vision.pdf
    python tools/pdf.py _build/html rope.pdf --only notebooks/02_rope

Chromium prints the pages as a reader's browser would, with everything open that folds.
References from one page to another lead within the file, and chapters are its outline.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import yaml
from playwright.sync_api import sync_playwright
from pypdf import PdfWriter
from pypdf.generic import ArrayObject, NameObject

ROOT = Path(__file__).resolve().parent.parent
MARGIN = {"top": "15mm", "bottom": "17mm", "left": "14mm", "right": "14mm"}
NUMBER = (
    '<div style="font-size: 8px; width: 100%; text-align: center">'
    '<span class="title"></span> &middot; <span class="pageNumber"></span></div>'
)


def pages() -> list[tuple[str | None, str]]:
    """(the part that it opens or None, name) of every page of the book, in order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    found: list[tuple[str | None, str]] = [(None, toc["root"])]
    for part in toc["parts"]:
        names = [chapter["file"] for chapter in part["chapters"]]
        found += zip([part["caption"], *[None] * len(names)], names)
    return found


def printed(html: Path, names: list[str], folder: Path) -> Iterator[tuple[Path, str]]:
    """(PDF, title) of each page, printed into a folder."""
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        page = browser.new_page()
        for number, name in enumerate(names):
            page.goto((html / f"{name}.html").as_uri())
            page.evaluate("dispatchEvent(new Event('beforeprint'))")
            # Pictures wait until they are near what is seen, which on paper all are.
            page.evaluate(
                """() => Promise.all([...document.images].map(image => {
                  image.loading = "eager";
                  return image.decode().catch(() => {});
                }))"""
            )
            path = folder / f"{number}.pdf"
            page.pdf(
                path=path,
                format="A4",
                margin=MARGIN,
                scale=0.85,
                print_background=True,
                display_header_footer=True,
                header_template="<span></span>",
                footer_template=NUMBER,
            )
            title = page.locator("article h1").last.inner_text()
            yield path, title.rstrip("#").strip()
        browser.close()


def write(html: Path, out: Path, names: list[tuple[str | None, str]]) -> int:
    """Print pages into one file. Returns how many sheets it has."""
    writer, first, part = PdfWriter(), {}, None
    with TemporaryDirectory() as folder:
        sheets = printed(html, [name for _, name in names], Path(folder))
        for (opens, name), (path, title) in zip(names, sheets):
            first[(html / f"{name}.html").resolve()] = number = len(writer.pages)
            writer.append(path, import_outline=False)
            if opens:
                part = writer.add_outline_item(title=opens, page_number=number)
            writer.add_outline_item(title=title, page_number=number, parent=part)
    for sheet in writer.pages:
        for link in sheet.get("/Annots", ()):
            lead_within(writer, link.get_object(), first)
    writer.add_metadata({"/Title": "Llama 3.2 Vision, from scratch"})
    out.parent.mkdir(parents=True, exist_ok=True)
    writer.write(out)
    return len(writer.pages)


def lead_within(writer: PdfWriter, link, first: dict[Path, int]) -> None:
    """Let a link to a page of the book lead to its first sheet."""
    action = link.get("/A")
    address = urlsplit(str(action.get_object().get("/URI", "")) if action else "")
    if address.scheme != "file":
        return
    sheet = first.get(Path(unquote(address.path)))
    if sheet is None:  # a file to fetch, of which the book on paper has none
        del link[NameObject("/A")]
        return
    del link[NameObject("/A")]
    link[NameObject("/Dest")] = ArrayObject(
        [writer.pages[sheet].indirect_reference, NameObject("/Fit")]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("html", type=Path, help="the folder of the built book")
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", metavar="PAGE", help="as in _toc.yml")
    options = parser.parse_args()
    if not (options.html / "index.html").is_file():
        sys.exit(f"{options.html} has no index.html: build the book first (make book).")
    chosen = [
        (part, name) for part, name in pages() if name in (options.only or [name])
    ]
    if not chosen:
        sys.exit(f"{options.only} are no pages: expected names as in _toc.yml.")
    sheets = write(options.html.resolve(), options.out, chosen)
    print(f"{options.out}: {sheets} pages, {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
