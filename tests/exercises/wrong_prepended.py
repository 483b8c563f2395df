"""Wrong answers to chapter 17's exercises."""

import math

RIGHT = {"tokens-of-seventeen-tiles": 1088, "who-hears-of-a-word": "b"}


def as_pairs(patches, factor):
    """Cuts the channels apart where they stand: rows of patches are mixed."""
    return patches.unflatten(-1, (factor**2, -1)).flatten(1, 2)


def columns_first(patches, factor):
    few = round(patches.shape[1] ** 0.5)
    squares = patches.view(len(patches), few, few, factor, factor, -1)
    return squares.permute(0, 1, 4, 2, 3, 5).flatten(1, 4)


def transposed(patches, factor):
    few = round(patches.shape[1] ** 0.5)
    squares = patches.view(len(patches), few, few, factor, factor, -1)
    return squares.permute(0, 2, 3, 1, 4, 5).flatten(1, 4)


def without_text(text, tiles, layers, cross, seen):
    """Forgets that a cross-attention layer keeps no text."""
    return cross * seen // layers


def per_image(text, tiles, layers, cross, seen):
    """Of an image, not of a tile."""
    return max(0, cross * (tiles * seen - text) // layers)


def below_zero(text, tiles, layers, cross, seen):
    return cross * (tiles * seen - text) // (layers * tiles)


WRONG = {
    "tokens-of-seventeen-tiles": [64, 17408, 1024, 0, "1088"],
    "who-hears-of-a-word": ["a", "c", "d", "e"],
    "shuffled-back": [lambda p, f: p, as_pairs, columns_first, transposed],
    "first-bias": [
        lambda n: -10.0,
        lambda n: -math.log(n * n),
        lambda n: 0.0,
        lambda n: math.log(n),
    ],
    "how-many-tokens-a-tile": [
        without_text,
        per_image,
        below_zero,
        lambda *case: 0,
    ],
}
