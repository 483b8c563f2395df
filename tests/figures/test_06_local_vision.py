"""The figures of chapter 6 against the package."""

import pytest
import torch

from mllama_lite.local_vision import padded_length, real_tokens_first

LENGTHS = {
    5: "5, as drawn above",
    17: "17, the small model",
    1601: "1601, tiles of 560",
}
REPAIRED = "repaired: all to padding"


def padding(num_tiles, num_patches):
    """u of the chapter: 1 for padding, [K·padded P]."""
    u = torch.ones(4, padded_length(num_patches), dtype=torch.long)
    u[:num_tiles, :num_patches] = 0
    return u.flatten()


@pytest.mark.parametrize("repaired", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("canvas, length", [("1 x 2", 5), ("3 x 1", 17), ("2 x 2", 5)])
def test_padding_mask(figure, canvas, length, ordered, repaired):
    """The pairs drawn as forbidden are the ones of Meta's formula, in the package's order."""
    shown = figure("padding_mask")
    shown.set("Canvas", canvas)
    shown.set("Tokens a tile", LENGTHS[length])
    shown.set("Real tokens first", ordered)
    if repaired:
        shown.set("Forbidden", REPAIRED)
    num_tiles = int(canvas[0]) * int(canvas[4])
    u = padding(num_tiles, length)
    order, num_real = real_tokens_first(num_tiles, 4, length)
    if not ordered:
        order = torch.arange(len(u))
    mask = u.expand(len(u), -1) if repaired else torch.outer(u, u)
    mask = mask[order][:, order]
    drawn = torch.zeros_like(mask)
    for top, bottom, left, right in shown.values()["forbidden"]:
        drawn[top:bottom, left:right] += 1
    assert torch.equal(drawn, mask)
    if ordered and not repaired:
        assert mask[num_real:, num_real:].all() and not mask[:num_real].any()
    for query in (0, length - 1, length, len(u) // 2, len(u) - 1):
        shown.set("Query", query)
        values = shown.values()
        sees = mask[query] == 0
        assert values["token"] == order[query]
        assert values["visible"] == sees.sum()
        assert values["visiblePadding"] == (sees * u[order]).sum()
        keys = torch.zeros(len(u), dtype=torch.bool)
        for start, end in values["keys"]:
            keys[start:end] = True
        assert torch.equal(keys, sees)
        words = shown.words()
        assert f"may look at {sees.sum()} of {len(u)} keys" in words
        assert ("which is real" in words) == (u[order[query]] == 0)
        assert ("without a mask" in words) == ordered


@pytest.mark.parametrize("canvas, tiles", [("1 x 1", 1), ("1 x 2", 2), ("4 x 1", 4)])
def test_padding_mask_at_full_size(figure, canvas, tiles):
    shown = figure("padding_mask")
    shown.set("Query", 31)
    shown.set("Tokens a tile", LENGTHS[1601])
    shown.set("Canvas", canvas)
    shown.set("Real tokens first", True)
    assert shown.values()["at"] == 31 * 201  # as far down as before
    shown.set("Query", 6431)
    total, real = 4 * padded_length(1601), tiles * 1601
    values, words = shown.values(), shown.words()
    assert (values["total"], values["numReal"]) == (total, real) and total == 6432
    assert values["pairs"] == (total - real) ** 2
    assert values["visible"] == real  # the query is padding
    share = f"{100 * (total - real) ** 2 / total**2:.1f} %"
    assert f"{(total - real) ** 2:,} of 41,370,624 pairs, {share}" in words
    assert f"{real:,} queries with 6,432 keys, {total - real:,} with {real:,}" in words
    shown.set("Tokens a tile", LENGTHS[5])  # back to fewer tokens
    assert shown.values()["total"] == 32 and shown.values()["at"] < 32


def test_padding_mask_drags(figure):
    shown = figure("padding_mask")
    box = shown.root.locator("svg").first.bounding_box()
    zoom = box["width"] / 300
    mouse = shown.page.mouse
    mouse.move(box["x"] + 100 * zoom, box["y"] + 40 * zoom)
    mouse.down()
    mouse.move(box["x"] + 100 * zoom, box["y"] + (36 + 250 * 6.5 / 32) * zoom)
    mouse.up()
    assert shown.control("Query").input_value() == "6"
    assert "filler of tile 0" in shown.words()
    assert shown.values()["visible"] == 10
