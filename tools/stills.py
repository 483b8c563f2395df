"""Still pictures of the figures that move, for readers without scripts, and for print.

    python tools/stills.py    writes book/assets/stills/NAME.svg

Each figure is opened in Chromium, and its drawings are written as they are before anything is
moved. tests/figures/test_every_figure.py compares them with what the figures draw now.
"""

import re
import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import live

ROOT = Path(__file__).resolve().parent.parent
STILLS = ROOT / "book" / "assets" / "stills"
FIGURE = '<div class="mllama-figure" data-figure="{name}"></div>'
NUMBER = re.compile(r"-?\d+\.\d{3,}(?:e-?\d+)?")
GAP = 20  # between drawings, in their units

# All drawings of a figure: [width, height, their SVG]. A canvas becomes a picture.
DRAWINGS = """root => [
  ...root.querySelectorAll(".figure-panels > svg, .figure-panels canvas")
].map(one => {
  if (one.tagName === "CANVAS") {
    const [w, h] = [one.width, one.height];
    return [w, h, `<image width="${w}" height="${h}" href="${one.toDataURL()}"/>`];
  }
  const { width, height } = one.viewBox.baseVal;
  const written = [...one.children].map(e => new XMLSerializer().serializeToString(e));
  return [width, height, written.join("")];
})"""


def names() -> list[str]:
    return sorted(path.stem for path in (live.LIVE / "figures").glob("*.js"))


def inks() -> str:
    """The figures' colours on light paper, as a style sheet of an SVG."""
    css = (live.LIVE / "figure.css").read_text(encoding="utf-8")
    colours = dict(re.findall(r"--(\w+): (#\w+);", css.split("}")[0]))
    rules = [
        f".stroke-{n}{{stroke:{c}}}.fill-{n}{{fill:{c}}}" for n, c in colours.items()
    ]
    return "text{font-family:sans-serif}.fill-none{fill:none}" + "".join(rules)


def still(drawings: list) -> str:
    """One SVG of drawings beside each other, numbers with two places."""
    x, parts = 0, []
    for width, height, content in drawings:
        content = content.replace(' xmlns="http://www.w3.org/2000/svg"', "")
        parts.append(f'<svg x="{x}" width="{width}" height="{height}">{content}</svg>')
        x += width + GAP
    size = x - GAP, max(height for _, height, _ in drawings)
    text = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" '
        f'width="{size[0]}"><style>{inks()}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )
    return NUMBER.sub(lambda match: f"{float(match[0]):.2f}", text)


def drawn(page) -> str | None:
    """The still picture of the figure on a page; None where it draws nothing."""
    drawings = page.eval_on_selector(".mllama-figure", DRAWINGS)
    return still(drawings) if drawings else None


def main() -> None:
    STILLS.mkdir(exist_ok=True)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        live.write_site(Path(folder))
        chromium = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox"]
        )
        for path in STILLS.glob("*.svg"):
            path.unlink()
        for name in names():
            page = chromium.new_page()
            page.goto(live.write_page(Path(folder), name, FIGURE.format(name=name)))
            page.wait_for_selector(".mllama-figure[data-ready]")
            if picture := drawn(page):
                (STILLS / f"{name}.svg").write_text(picture, encoding="utf-8")
            else:
                print(f"{name} draws nothing before it is moved")
            page.close()
        chromium.close()
    size = sum(path.stat().st_size for path in STILLS.glob("*.svg"))
    print(f"{len(list(STILLS.glob('*.svg')))} pictures, {size:,} bytes")


if __name__ == "__main__":
    main()
