"""The map that opens every chapter: the model's parts, each a link to its chapter.

Drawn as SVG from the configuration of the 11B, so that a page can show it in its own colours.
"""

import html

from mllama_lite.model import MllamaConfig

CONFIG = MllamaConfig()
TEXT, VISION = CONFIG.text, CONFIG.vision

# name: (lines of text, chapter, column, row); rows count downwards
BOXES = {
    "training": (["training"], "11_training", 0, 0),
    "lora": (["LoRA"], "12_lora", 1, 0),
    "finetuning": (["fine-tuning"], "13_finetuning", 2, 0),
    "skill": (["a new skill"], "14_skill", 3, 0),
    "files": (["reading files"], "15_files", 4, 0),
    "checkpoint": (["checkpoint: every weight of every box"], "09_checkpoint", 2, 0.8),
    "tiles": (["image tiles"], "05_tiles", 0, 1.75),
    "local_vision": (
        ["local vision", f"{VISION.num_hidden_layers} layers"],
        "06_local_vision",
        1,
        1.75,
    ),
    "global_vision": (
        ["global vision", f"{VISION.num_global_layers} layers"],
        "07_global_vision",
        2,
        1.75,
    ),
    "cross_attention": (
        ["cross-attention", f"{len(TEXT.cross_attention_layers)} layers"],
        "08_cross_attention",
        3,
        2.65,
    ),
    "inference": (["sampling,", "caches"], "10_inference", 4, 3.1),
    "tokenizer": (["tokenizer"], "01_tokenizer", 0, 3.5),
    "decoder": (
        ["text decoder", f"{len(TEXT.self_attention_layers)} layers"],
        "04_decoder",
        2,
        3.5,
    ),
    "rope": (["RoPE"], "02_rope", 1, 4.4),
    "attention": (["grouped-query", "attention"], "03_attention", 2, 4.4),
    "text": (["text from", "nothing"], "16_text", 3, 4.4),
    "prepended": (["images as", "tokens"], "17_prepended", 4, 4.4),
    "guard": (["refusing"], "19_guard", 4, 1.75),
    "hearing": (["hearing"], "18_hearing", 0, 4.4),
    "alignment": (["two that", "never met"], "20_alignment", 3, 5.3),
}
ARROWS = [
    ("training", "checkpoint"),
    ("lora", "checkpoint"),
    ("finetuning", "checkpoint"),
    ("skill", "checkpoint"),
    ("files", "checkpoint"),
    ("tiles", "local_vision"),
    ("local_vision", "global_vision"),
    ("global_vision", "cross_attention"),
    ("tokenizer", "decoder"),
    ("rope", "attention"),
    ("attention", "decoder"),
    ("cross_attention", "decoder"),
    ("decoder", "cross_attention"),
    ("decoder", "inference"),
    ("decoder", "text"),
    ("decoder", "prepended"),
    ("inference", "guard"),
    ("hearing", "decoder"),
    ("text", "alignment"),
    ("prepended", "alignment"),
]
NOTES = [  # text, x, y
    ("a photograph", 14, 130),
    ("a question", 14, 266),
    ("the answer, token by token", 590, 316),
]
STEP_X, STEP_Y, WIDE, HIGH = 152, 78, 128, 46  # units of the drawing
SIZE = (4 * STEP_X + WIDE + 24, 470)


class Map:
    """The map with one part lit; a notebook shows it as SVG.

    Args:
        lit: a name in BOXES.
    """

    def __init__(self, lit: str) -> None:
        if lit not in BOXES:
            raise KeyError(
                f"no part is called {lit!r}: expected one of {', '.join(BOXES)}"
            )
        self.lit = lit

    def __repr__(self) -> str:
        return f"Map of the model: {' '.join(BOXES[self.lit][0])}"

    def _repr_html_(self) -> str:
        parts = [arrow(a, b) for a, b in ARROWS]
        parts += [box(name, name == self.lit) for name in BOXES]
        style = 'font-size="12" font-style="italic" fill="currentColor"'
        parts += [
            f'<text x="{x}" y="{y}" {style}>{text}</text>' for text, x, y in NOTES
        ]
        return (
            '<div style="overflow-x: auto">'
            f'<svg viewBox="0 0 {SIZE[0]} {SIZE[1]}" role="group" '
            'aria-label="Map of the model" font-family="sans-serif" '
            'style="width: 100%; min-width: 35rem; max-width: 50rem">'
            '<defs><marker id="map-tip" viewBox="0 0 8 8" refX="7" refY="4" '
            'markerWidth="8" markerHeight="8" orient="auto-start-reverse">'
            '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>'
            f"{''.join(parts)}</svg></div>"
        )


def place(name: str) -> tuple[float, float, float, float]:
    """(x, y) of a box's middle, and half its width and height."""
    _, _, column, row = BOXES[name]
    wide, high = (4 * STEP_X + WIDE, 30) if name == "checkpoint" else (WIDE, HIGH)
    if row == 0:
        high = 30
    return WIDE / 2 + 12 + column * STEP_X, 20 + row * STEP_Y, wide / 2, high / 2


def box(name: str, lit: bool) -> str:
    """A part as a link; the lit one in orange, with a thick edge and bold letters."""
    lines, chapter, _, _ = BOXES[name]
    x, y, w, h = place(name)
    fill = 'fill="#E69F00"' if lit else 'fill="currentColor" fill-opacity="0.06"'
    edge = f'stroke="currentColor" stroke-width="{2.2 if lit else 0.8}"'
    ink = 'fill="#222222" font-weight="bold"' if lit else 'fill="currentColor"'
    first = y + 4.5 - 8 * (len(lines) - 1)
    text = "".join(
        f'<tspan x="{x}" y="{first + 16 * n}">{html.escape(line)}</tspan>'
        for n, line in enumerate(lines)
    )
    return (
        f'<a href="{chapter}.ipynb"><rect x="{x - w}" y="{y - h}" width="{2 * w}" '
        f'height="{2 * h}" rx="8" {fill} {edge}/>'
        f'<text text-anchor="middle" font-size="13" {ink}>{text}</text></a>'
    )


def arrow(a: str, b: str) -> str:
    """A line from the edge of one box to the edge of another; back and forth are bent."""
    (xa, ya, wa, ha), (xb, yb, wb, hb) = place(a), place(b)
    dx, dy = (0 if b == "checkpoint" else xb - xa), yb - ya
    xb = xa + dx
    out = min(wa / abs(dx) if dx else 9, ha / abs(dy) if dy else 9)
    into = min((wb + 2) / abs(dx) if dx else 9, (hb + 2) / abs(dy) if dy else 9)
    start, end = (xa + dx * out, ya + dy * out), (xb - dx * into, yb - dy * into)
    bend = 0.22 if (b, a) in ARROWS else 0
    middle = ((start[0] + end[0]) / 2 + bend * dy, (start[1] + end[1]) / 2 - bend * dx)
    points = " ".join(f"{n:.1f}" for n in (*middle, *end))
    return (
        f'<path d="M{start[0]:.1f} {start[1]:.1f}Q{points}" fill="none" '
        'stroke="currentColor" stroke-width="1.2" marker-end="url(#map-tip)"/>'
    )
