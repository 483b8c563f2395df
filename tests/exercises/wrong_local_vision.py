"""Wrong answers to chapter 6's exercises."""

import torch
import torch.nn.functional as F

from mllama_lite.tiles import canvases

TOKENS, PADDED = 1025, 1032
PADDING = 4 * PADDED - 3 * TOKENS
RIGHT = {"forbidden-pairs": PADDING**2, "swapped-tiles": "b"}


def patchify(pixels, size):
    return F.unfold(pixels, size, stride=size).transpose(1, 2)


def unpatchify(patches, channels, size):
    side = size * int(patches.shape[1] ** 0.5)
    return F.fold(patches.transpose(1, 2), (side, side), size, stride=size)


def plain_reshape(pixels, size):
    return pixels.reshape(len(pixels), -1, pixels.shape[1] * size**2)


def colours_last(pixels, size):
    patches = patchify(pixels, size).unflatten(2, (pixels.shape[1], -1))
    return patches.transpose(2, 3).flatten(2)


def column_by_column(pixels, size):
    return patchify(pixels.transpose(2, 3), size)


def of_one_image(pixels, size):
    return patchify(pixels, size).flatten(0, 1)


def reshaped_back(patches, channels, size):
    side = size * int(patches.shape[1] ** 0.5)
    return patches.reshape(len(patches), channels, side, side)


def cells(transposed=False):
    """(aspect ratio id, tile, row, column) of every slot in use."""
    for number, (rows, columns) in enumerate(canvases(), start=1):
        for tile in range(rows * columns):
            place = tile // columns, tile % columns
            yield number, tile, *(place[::-1] if transposed else place)


def last_copy(table):
    grid = torch.zeros(4, 4, table.shape[-1])
    for number, tile, row, column in cells():
        grid[row, column] = table[number, tile]
    return grid


def mean_of_copies(table, transposed=False, start=0.0):
    grid, count = torch.zeros(4, 4, table.shape[-1]), torch.full((4, 4, 1), start)
    for number, tile, row, column in cells(transposed):
        grid[row, column] += table[number, tile]
        count[row, column] += 1
    return grid / count


def nothing_divided_by_nothing(table):
    return mean_of_copies(table)


def sum_of_copies(table):
    grid = torch.zeros(4, 4, table.shape[-1])
    for number, tile, row, column in cells():
        grid[row, column] += table[number, tile]
    return grid


def rows_and_columns_exchanged(table):
    return mean_of_copies(table, transposed=True).nan_to_num()


def one_count_too_many(table):
    return mean_of_copies(table, start=1.0)


def copies(query, key, value, register, content, count):
    key = torch.cat([key, register.expand(count, -1)])
    value = torch.cat([value, content.expand(count, -1)])
    return F.scaled_dot_product_attention(query, key, value)


def a_single_copy(query, key, value, register, content, count):
    return copies(query, key, value, register, content, 1)


def score_times_count(query, key, value, register, content, count):
    return copies(query, key, value, count * register, content, 1)


def value_times_count(query, key, value, register, content, count):
    return copies(query, key, value, register, count * content, 1)


def overflows(query, key, value, register, content, count):
    weights = (query @ key.T * query.shape[1] ** -0.5).exp()
    extra = count * (query @ register[:, None] * query.shape[1] ** -0.5).exp()
    total = weights.sum(dim=1, keepdim=True) + extra
    return (weights @ value + extra * content) / total


WRONG = {
    "forbidden-pairs": [
        PADDING * 4 * PADDED,  # hidden from everybody
        TOKENS**2,  # the empty tile without its filler
        PADDED**2,  # the empty tile alone
        (4 * 1608 - 3 * 1601) ** 2,  # tiles of 560 pixels
        4 * PADDED,
    ],
    "swapped-tiles": ["a", "c", "d"],
    "patchify-and-back": [
        (plain_reshape, reshaped_back),
        (colours_last, unpatchify),
        (column_by_column, unpatchify),
        (of_one_image, unpatchify),
        (patchify, reshaped_back),
    ],
    "nearest-grid": [
        last_copy,
        nothing_divided_by_nothing,
        sum_of_copies,
        rows_and_columns_exchanged,
        one_count_too_many,
    ],
    "one-register": [
        copies,
        a_single_copy,
        score_times_count,
        value_times_count,
        overflows,
    ],
}
