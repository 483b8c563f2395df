"""The figures of chapter 6 against the package."""

import pytest
import torch
from PIL import Image

from mllama_lite import load
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.local_vision import padded_length, real_tokens_first
from mllama_lite.tiles import image_to_tiles

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


PICTURES = {
    "mixed": "Digits and shapes",
    "digits": "Three digits",
    "one": "A single digit",
    "tall": "A tall picture",
}


def looks(vlm, name, place, layer, bare):
    """Weights of one patch, [H, K·padded P], as the chapter computes them, and the tiles."""
    vision = vlm.model.vision_model
    image = Image.open(find_folder() / "pictures" / f"{name}.png")
    tiles = image_to_tiles(image, 56)
    ids = torch.tensor([tiles.aspect_ratio_id])
    x = vision.embed(tiles.pixel_values[None], ids, tiles.num_tiles).flatten(1, 2)
    order, num_real = real_tokens_first(tiles.num_tiles, 4, 17)
    x = x[:, order]
    if bare:
        x = x[:, :num_real]
    _, kept = vision.transformer(x, num_real, range(4))
    asked = vision.transformer.layers[layer]
    x = asked.input_layernorm(kept[layer])[0]
    query, key = (
        part(x).unflatten(-1, (4, 32)).transpose(0, 1)
        for part in (asked.self_attn.q_proj, asked.self_attn.k_proj)
    )
    row, column = place
    tile = row // 4 * tiles.canvas[1] + column // 4
    asking = order.tolist().index(tile * 24 + 1 + row % 4 * 4 + column % 4)
    weights = torch.zeros(4, 96)
    scores = (query @ key.mT / 32**0.5).softmax(dim=-1)[:, asking]
    weights[:, order[: len(x)]] = scores
    return weights, tiles


def settled(shown, **wanted):
    """The values, once the figure has taken what the controls say."""
    shown.page.wait_for_function(
        """wanted => {
          const now = document.querySelector(".mllama-figure").figure.numbers();
          return now && !now.doing && Object.entries(wanted).every(
            ([name, value]) => String(now[name]) === String(value));
        }""",
        arg=wanted,
    )
    return shown.values()


@pytest.fixture(scope="module")
def vlm():
    return load(dtype="float32", device="cpu")


def test_patch_looks(figure, vlm):
    shown = figure("patch_looks")
    settled(shown, name="mixed")
    shown.press("Look with the model")
    settled(shown, loaded="true")
    for name, place, layer, bare in [
        ("mixed", (2, 2), 0, False),
        ("mixed", (5, 6), 3, True),
        ("digits", (1, 9), 1, False),
        ("tall", (10, 3), 2, False),
        ("one", (0, 0), 0, True),
    ]:
        shown.set("Picture", PICTURES[name])
        settled(shown, name=name)
        for label, value in zip(("Row", "Column", "Layer"), (*place, layer)):
            shown.set(label, value)
        shown.set("Without padding", bare)
        wanted = {"name": name, "layer": layer, "bare": str(bare).lower()}
        values = settled(shown, place=f"{place[0]},{place[1]}", **wanted)
        want, tiles = looks(vlm, name, place, layer, bare)
        got = torch.tensor(values["weights"])
        assert got.sum(dim=1).tolist() == pytest.approx([1] * 4, abs=1e-5)
        assert (got - want).abs().max() < 1e-4
        assert tuple(values["canvas"]) == tiles.canvas
        u = padding(tiles.num_tiles, 17)
        shares = (want * u).sum(dim=1)
        words = shown.words()
        assert f"row {place[0]}, column {place[1]}, in layer {layer}:" in words
        if bare:
            assert "nowhere else to look" in words and not shares.any()
        else:
            told = ", ".join(f"{round(100 * share)} %" for share in shares.tolist())
            assert f"heads 0 to 3 give {told} of their attention to padding" in words
            assert f"(equal weights: {100 * u.float().mean():.0f} %)" in words


def test_patch_looks_before_there_is_a_model_and_by_clicks(figure):
    shown = figure("patch_looks")
    values = settled(shown, name="mixed", loaded="false")
    assert sum(values["weights"], []) == pytest.approx([1 / 96] * 384)
    assert "equal weights, 29 % of them on padding" in shown.words()
    patches = shown.root.locator("svg").first.locator("rect[style*=pointer]")
    assert patches.count() == 64
    patches.nth(
        16 * 3 + 5
    ).click()  # tile 3 of 2 x 2, patch 5: its second row and column
    settled(shown, place="5,5")
    assert shown.control("Row").input_value() == "5"
    shown.set("Picture", PICTURES["tall"])  # 3 x 1: fewer columns
    settled(shown, name="tall", place="5,3")
    assert shown.control("Row").get_attribute("max") == "11"
    shown.set("Without padding", True)
    values = settled(shown, bare="true")
    assert max(values["weights"][0]) == pytest.approx(1 / 51)


def test_patch_looks_at_a_scale_of_each_map(figure):
    shown = figure("patch_looks")
    settled(shown, name="mixed")
    scale = shown.root.locator("svg").nth(1).locator("text").nth(1)
    assert scale.text_content() == "full orange: 20 %"
    shown.set("Each map at its own scale", True)
    assert scale.text_content() == "full orange: 1 %"  # 1 of 96
