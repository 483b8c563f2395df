"""Wrong answers to chapter 5's exercises."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mllama_lite.tiles import CLIP_MEAN, CLIP_STD

RIGHT = {"letters-of-a-scan": 30 * 1120 / 3508, "exact-zero": "d"}


def levels(values):
    mean, std = (torch.tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
    return ((values * std + mean) * 255).round().clip(0, 255).byte()


def joined(tiles, grid):
    """Tiles [rows, columns, 3, S, S], in whatever order, as one picture."""
    rows = [torch.cat(list(row), dim=2) for row in grid]
    return torch.cat(rows, dim=1).permute(1, 2, 0).numpy()


def still_normalised(tiles):
    grid = tiles.pixel_values[: tiles.num_tiles].unflatten(0, tiles.canvas)
    return joined(tiles, (grid * 255).clip(0, 255).byte())


def column_by_column(tiles):
    rows, columns = tiles.canvas
    grid = levels(tiles.pixel_values[: tiles.num_tiles]).unflatten(0, (columns, rows))
    return joined(tiles, grid.transpose(0, 1))


def one_reshape(tiles):
    (rows, columns), side = tiles.canvas, tiles.pixel_values.shape[-1]
    parts = levels(tiles.pixel_values[: tiles.num_tiles])
    return parts.reshape(3, rows * side, columns * side).permute(1, 2, 0).numpy()


def cut_off_and_not_rounded(tiles):
    mean, std = (torch.tensor(x)[:, None, None] for x in (CLIP_MEAN, CLIP_STD))
    values = (tiles.pixel_values[: tiles.num_tiles] * std + mean) * 255
    return joined(tiles, values.byte().unflatten(0, tiles.canvas))


def missing_tiles_too(tiles):
    return joined(tiles, levels(tiles.pixel_values)[None])


def plain(row, count):
    row = row[None, None, None]
    return F.interpolate(row, (1, count), mode="bilinear")[0, 0, 0]


def mean_of_each_part(row, count):
    return F.adaptive_avg_pool1d(row[None], count)[0]


def filtered(row, count, wide=1.0, half=0.5):
    scale, made = len(row) / count, []
    for place in range(count):
        middle = (place + half) * scale
        off = (torch.arange(len(row)) + half - middle).abs()
        weights = (1 - off / (scale * wide)).clip(min=0)
        made.append((weights * row).sum() / weights.sum().clip(min=1e-9))
    return torch.stack(made)


def half_as_wide(row, count):
    return filtered(row, count, wide=0.5)


def corners_for_middles(row, count):
    return filtered(row, count, half=0.0)


def not_divided_by_the_sum(row, count):
    scale, made = len(row) / count, []
    for place in range(count):
        off = (torch.arange(len(row)) + 0.5 - (place + 0.5) * scale).abs()
        made.append(((1 - off / scale).clip(min=0) * row).sum() / scale)
    return torch.stack(made)


def nothing_hidden(seen, hidden):
    return seen


def every_pixel(seen, hidden):
    factor = len(seen) // len(hidden)
    return hidden.repeat(factor, axis=0).repeat(factor, axis=1)


def corner_of_each_square(seen, hidden):
    factor = len(seen) // len(hidden)
    seen[::factor, ::factor] = hidden
    return seen


def one_pixel_of_four(seen, hidden):  # right for an odd factor alone
    factor = len(seen) // len(hidden)
    seen[factor // 2 :: factor, factor // 2 :: factor] = hidden
    return seen


def blended(seen, hidden):
    size = (seen.shape[1], seen.shape[0])
    large = np.asarray(Image.fromarray(hidden).resize(size)).astype(float)
    return (0.9 * seen + 0.1 * large).astype(np.uint8)


WRONG = {
    "letters-of-a-scan": [
        30,  # left as it is
        30 * 560 / 3508,  # one tile
        30 * 1120 / 2480,  # by the shorter side
        30 * 2240 / 3508,  # four tiles below each other
        30 * 560 / 2480,
    ],
    "exact-zero": ["a", "b", "c"],
    "uncut": [
        still_normalised,
        column_by_column,
        one_reshape,
        cut_off_and_not_rounded,
        missing_tiles_too,
    ],
    "antialiased-row": [
        plain,
        mean_of_each_part,
        half_as_wide,
        corners_for_middles,
        not_divided_by_the_sum,
    ],
    "camouflage": [
        nothing_hidden,
        every_pixel,
        corner_of_each_square,
        one_pixel_of_four,
        blended,
    ],
}
