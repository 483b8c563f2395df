"""The look of the book's pictures."""

import re

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

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


def token_text(tokenizer, id):
    """A token as it fits into a small box."""
    text = re.sub(r"<\|(.*?)(_header)?(_id)?\|>", r"\1", tokenizer.decode([id]))
    text = text.replace("begin_of_text", "begin").replace("\n", "↵")
    return text.strip(" ") or "␣"


def labels(tokenizer, tokens, labels, per_line=12):
    """Draw tokens as boxes, in lines; orange where a label is, with the label below."""
    starts = range(0, len(tokens), per_line)
    size = (9, 1.05 * len(starts))
    figure, axes = plt.subplots(len(starts), 1, figsize=size, squeeze=False)
    style = dict(ha="center", va="center", fontsize=10)
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
        axis.set(xlim=(0, 11), ylim=(-0.5, 0.7))
        axis.set_axis_off()
    plt.show()
