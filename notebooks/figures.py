"""The look of the book's pictures, and the map that opens every chapter."""

import re

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

# Okabe and Ito's palette: the colours stay apart for colour-blind readers.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
RED, SKY, YELLOW, GREY = "#D55E00", "#56B4E9", "#F0E442", "#8C8C8C"
COLOURS = [BLUE, ORANGE, GREEN, PURPLE, RED, SKY, YELLOW, GREY]
PAPER, INK = "#FCFCFA", "#222222"


def setup():
    """Set matplotlib's defaults for a notebook of this book."""
    plt.rcParams.update(
        {
            "figure.facecolor": PAPER,
            "savefig.facecolor": PAPER,
            "axes.facecolor": PAPER,
            "axes.edgecolor": INK,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(color=COLOURS),
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "text.color": INK,
            "font.size": 10,
            "figure.figsize": (7, 3.2),
            "figure.dpi": 110,
            "savefig.dpi": 110,
            "savefig.bbox": "tight",
            "legend.frameon": False,
            "image.cmap": "cividis",
        }
    )


# name: (label, column, row); rows count upwards
BOXES = {
    "tiles": ("image tiles", 0, 2),
    "local_vision": ("local vision\n32 layers", 1, 2),
    "global_vision": ("global vision\n8 layers", 2, 2),
    "cross_attention": ("cross-attention\n8 layers", 3, 1),
    "tokenizer": ("tokenizer", 0, 0),
    "rope": ("RoPE", 1, -0.9),
    "attention": ("grouped-query\nattention", 2, -0.9),
    "decoder": ("text decoder\n32 layers", 2, 0),
    "inference": ("sampling,\ncaches", 4, 0.5),
    "checkpoint": ("checkpoint: every weight of every box", 2, 3.05),
}
ARROWS = [
    ("tiles", "local_vision"),
    ("local_vision", "global_vision"),
    ("global_vision", "cross_attention"),
    ("tokenizer", "decoder"),
    ("rope", "attention"),
    ("attention", "decoder"),
    ("cross_attention", "decoder"),
    ("decoder", "cross_attention"),
    ("decoder", "inference"),
]


def architecture(lit):
    """Draw the map of the model with one part lit; `lit` is a name in BOXES."""
    figure, axes = plt.subplots(figsize=(7.6, 3.6))
    centres = {}
    for name, (label, column, row) in BOXES.items():
        wide = name == "checkpoint"
        x, y, width, height = column * 1.75, row * 0.95, 8.5 if wide else 1.5, 0.62
        on = name == lit
        axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - height / 2),
                width,
                height * (0.75 if wide else 1),
                boxstyle="round,pad=0.03,rounding_size=0.1",
                facecolor=ORANGE if on else "#E9E9E4",
                edgecolor=INK if on else GREY,
                linewidth=1.8 if on else 0.8,
            )
        )
        weight = "bold" if on else "normal"
        axes.text(
            x,
            y - (0.08 if wide else 0),
            label,
            ha="center",
            va="center",
            fontsize=8 if on else 8.5,
            weight=weight,
        )
        centres[name] = (x, y, width / 2 + 0.03, height / 2 + 0.03)
    for a, b in ARROWS:
        (xa, ya, wa, ha), (xb, yb, wb, hb) = centres[a], centres[b]
        dx, dy = xb - xa, yb - ya
        # leave each box at its border
        out = min(wa / abs(dx) if dx else 9, ha / abs(dy) if dy else 9)
        into = min(wb / abs(dx) if dx else 9, hb / abs(dy) if dy else 9)
        start = (xa + dx * out, ya + dy * out)
        end = (xb - dx * into, yb - dy * into)
        both = (a, b) == ("cross_attention", "decoder")
        bend = (
            "arc3,rad=0.25"
            if both or (b, a) == ("cross_attention", "decoder")
            else "arc3"
        )
        style = dict(arrowstyle="-|>", color=INK, linewidth=1, connectionstyle=bend)
        axes.annotate("", end, start, arrowprops=style)
    axes.text(-0.75, 2 * 0.95 + 0.42, "a photograph", fontsize=8, style="italic")
    axes.text(-0.75, 0.42, "a question", fontsize=8, style="italic")
    axes.text(
        4 * 1.75 - 0.78,
        0.5 * 0.95 - 0.52,
        "the answer, token by token",
        fontsize=8,
        style="italic",
    )
    axes.set_xlim(-0.9, 8.2)
    axes.set_ylim(-1.3, 3.4)
    axes.set_axis_off()
    plt.show()


def token_text(tokenizer, id):
    """A token as it fits into a small box."""
    text = re.sub(r"<\|(.*?)(_header)?(_id)?\|>", r"\1", tokenizer.decode([id]))
    text = text.replace("begin_of_text", "begin").replace("\n", "↵")
    return text.strip(" ") or "␣"


def labels(tokenizer, tokens, labels, per_line=19):
    """Draw tokens as boxes, in lines; orange where a label is, with the label below."""
    starts = range(0, len(tokens), per_line)
    size = (9, 0.95 * len(starts))
    figure, axes = plt.subplots(len(starts), 1, figsize=size, squeeze=False)
    style = dict(ha="center", va="center", fontsize=7)
    for axis, start in zip(axes[:, 0], starts):
        x, end = 0.0, start + per_line
        for token, label in zip(tokens[start:end], labels[start:end]):
            text, learned = token_text(tokenizer, token), label >= 0
            wide = 0.17 * max(len(text), 3) + 0.2
            face = ORANGE if learned else "#E9E9E4"
            box = Rectangle((x, 0), wide, 0.6, facecolor=face, edgecolor="white")
            axis.add_patch(box)
            axis.text(x + wide / 2, 0.3, text, **style)
            if learned:
                axis.text(x + wide / 2, -0.25, token_text(tokenizer, label), **style)
            x += wide
        axis.set(xlim=(0, 17), ylim=(-0.5, 0.7))
        axis.set_axis_off()
    plt.show()
