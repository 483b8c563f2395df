"""Checks of chapter 5's exercises."""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from exercises import exercise, expect
from mllama_lite.tiles import canvases, choose_canvas, image_to_tiles, resized_size


def noise(*shape):
    return np.random.RandomState(0).randint(0, 256, shape, dtype=np.uint8)


@exercise("letters-of-a-scan")
def letters_of_a_scan(answer):
    height, width, letters, tile = 3508, 2480, 30, 560
    canvas = choose_canvas(height, width, tile)
    kept = letters * resized_size(height, width, canvas, tile)[0] / height
    near = lambda wrong: abs(answer - wrong) < 0.1
    expect(not near(letters), "does the page fit without being shrunk?")
    expect(not near(letters * tile / height), "how many tiles may a picture have?")
    expect(not near(letters * 2 * tile / width), "do both sides fit now?")
    expect(not near(letters * 4 * tile / height), "how wide is that canvas?")
    expect(near(kept), "first the canvas, then the factor by which the page shrinks")


@exercise("exact-zero")
def exact_zero(answer):
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)  # every level there is
    whole = image_to_tiles(Image.fromarray(levels), 16).pixel_values
    padded = image_to_tiles(Image.fromarray(levels[:10]), 16).pixel_values
    zero = lambda values: bool((values == 0).any())
    found = zero(whole[0]), zero(padded[0, :, 10:]), zero(whole[1:])
    where = {
        "a": (False, True, False),
        "b": (False, True, True),
        "c": (True, False, True),
        "d": (False, False, True),
    }
    expect(answer in where, "the answer is one of the four letters")
    expect(where[answer] == found, "try a picture with every level from 0 to 255")


@exercise("uncut")
def uncut(join):
    for rows, columns in canvases():
        pixels = noise(rows * 12 - 5, columns * 12, 3)  # fits: nothing is resized
        tiles = image_to_tiles(Image.fromarray(pixels), 12)
        assert tiles.canvas == (rows, columns)
        want = np.zeros((rows * 12, columns * 12, 3), dtype=np.uint8)
        want[: pixels.shape[0], : pixels.shape[1]] = pixels
        got = np.asarray(join(tiles))
        name = f"on {rows} x {columns}"
        expect(
            got.shape == want.shape,
            f"{name} the shape is {list(got.shape)}, not {list(want.shape)}",
        )
        expect(got.dtype == np.uint8, f"the numbers are {got.dtype}, and not uint8")
        off = np.abs(got.astype(int) - want)
        part = (off > 0).mean()
        expect(
            part == 0, f"{name} {part:.0%} of the numbers differ, by up to {off.max()}"
        )


@exercise("antialiased-row")
def antialiased_row(shrink):
    for length, count in ((8, 2), (8, 4), (50, 7), (33, 30), (9, 1)):
        row = noise(1, length)
        filtered = Image.fromarray(row).resize((count, 1), Image.Resampling.BILINEAR)
        got = torch.as_tensor(shrink(torch.tensor(row[0]).float(), count)).float()
        shape = list(got.shape)
        expect(shape == [count], f"{length} pixels to {count} give a shape of {shape}")
        off = (got - torch.tensor(np.array(filtered)[0]).float()).abs()
        place = off.argmax().item()
        expect(
            off.max().item() < 0.75,  # Pillow rounds to whole levels
            f"{length} pixels to {count}: pixel {place} is {off.max():.1f} levels off",
        )


@exercise("camouflage")
def camouflage(hide):
    for factor in (8, 5, 6):
        height, width = 24, 31
        hidden = noise(height, width, 3)
        seen = np.full((height * factor, width * factor, 3), 200, dtype=np.uint8)
        seen[factor : 9 * factor, 3 * factor : 20 * factor] = 40
        made = np.asarray(hide(seen.copy(), hidden.copy()))
        expect(
            made.shape == seen.shape and made.dtype == np.uint8,
            f"it returns {list(made.shape)} of {made.dtype}, not such pixels as it got",
        )
        changed = (made != seen).any(axis=2).mean()
        expect(changed <= 1 / 8, f"a person sees {changed:.0%} of the pixels changed")
        pixels = torch.from_numpy(made).permute(2, 0, 1)[None].float()
        small = F.interpolate(pixels, (height, width), mode="bilinear")
        off = (small[0].permute(1, 2, 0) - torch.from_numpy(hidden)).abs().mean()
        name = f"shrunk to 1 in {factor}"
        expect(off < 2, f"{name}, plainly, it is {off:.0f} levels from what was hidden")
