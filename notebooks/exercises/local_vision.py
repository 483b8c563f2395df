"""Checks of chapter 6's exercises."""

import torch
import torch.nn.functional as F

from exercises import exercise, expect
from exercises.largest import Largest
from mllama_lite.checkpoints.names import tile_table
from mllama_lite.local_vision import (
    LocalVision,
    VisionConfig,
    padded_length,
    real_tokens_first,
)
from mllama_lite.tiles import canvases


@exercise("forbidden-pairs")
def forbidden_pairs(answer):
    tokens = VisionConfig(image_size=448).num_patches
    length = 4 * padded_length(tokens)
    _, num_real = real_tokens_first(3, max_tiles=4, num_patches=tokens)
    padding = length - num_real
    expect(answer != padding * length, "may a real token look at padding?")
    empty = tokens**2, padded_length(tokens) ** 2
    expect(answer not in empty, "is the empty tile all that is padding?")
    expect(answer == padding**2, "how many tokens are padding, and who sees them?")


def _swapped():
    """The letter of what becomes of two tiles that are exchanged."""
    config = VisionConfig(
        hidden_size=16,
        attention_heads=2,
        intermediate_size=32,
        num_hidden_layers=2,
        image_size=28,
        intermediate_layers_indices=(0, 1),
    )
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        half = LocalVision(config)
        for name, parameter in half.named_parameters():
            if not name.endswith("gate"):
                parameter += 0.3 * torch.randn_like(parameter)
        pixels, ids = torch.randn(1, 4, 3, 28, 28), torch.tensor([2])
        before = half(pixels, ids, 2)[0][0, :2]
        after = half(pixels[:, [1, 0, 2, 3]], ids, 2)[0][0, :2]
    same = lambda one, other: torch.allclose(one, other, atol=1e-4)
    if same(after, before):
        return "a"
    if same(after, before.flip(0)):
        return "b"
    return "c" if same(after[:, 0], before.flip(0)[:, 0]) else "d"


@exercise("swapped-tiles")
def swapped_tiles(answer):
    expect(answer == _swapped(), "what tells a token its tile while both gates are 0?")


@exercise("patchify-and-back")
def patchify_and_back(patchify, unpatchify):
    generator = torch.Generator().manual_seed(0)
    for images, channels, side, size in ((2, 3, 28, 7), (1, 3, 12, 2), (3, 1, 20, 10)):
        pixels = torch.randn(images, channels, side, side, generator=generator)
        weight = torch.randn(5, channels, size, size, generator=generator)
        made, count = patchify(pixels, size), (side // size) ** 2
        shape, wanted = list(getattr(made, "shape", [])), channels * size**2
        expect(
            shape == [images, count, wanted],
            f"{list(pixels.shape)} with patches of {size} give {shape}",
        )
        conv = F.conv2d(pixels, weight, stride=size).flatten(2).transpose(1, 2)
        off = (made @ weight.flatten(1).T - conv).abs().max().item()
        expect(off < 1e-3, f"times a weight it is {off:.1f} from the convolution")
        again = unpatchify(made, channels, size)
        shape = list(getattr(again, "shape", []))
        expect(shape == list(pixels.shape), f"the way back ends at {shape}")
        expect(torch.equal(again, pixels), "the way back gives other pixels")


@exercise("nearest-grid")
def nearest_grid(nearest):
    generator = torch.Generator().manual_seed(0)
    used = torch.zeros(4, 4, dtype=torch.bool)
    for rows, columns in canvases():
        used[:rows, :columns] = True
    grid = torch.randn(4, 4, 3, generator=generator)
    table = tile_table(grid, max_tiles=4).view(9, 4, 3)
    got = nearest(table.clone())
    shape = list(getattr(got, "shape", []))
    expect(shape == [4, 4, 3], f"for a table of [9, 4, 3] it returns {shape}")
    expect(got.isfinite().all(), "some numbers are infinite or nan")
    expect(not got[~used].any(), "a cell that no canvas reaches is not 0")
    off = (got - grid)[used].abs().max().item()
    expect(off < 1e-5, f"a table that was made from a grid gives one {off:.2f} off")
    table = torch.randn(9, 4, 3, generator=generator)  # as after much fine-tuning
    with torch.enable_grad():
        got = nearest(table.clone()).detach().requires_grad_()
        away = (tile_table(got, max_tiles=4).view(9, 4, 3) - table).square().sum()
        (slope,) = torch.autograd.grad(away, got)
    steepest = slope.abs().max().item()
    expect(steepest < 1e-4, "when copies have drifted apart, another grid is nearer")


@exercise("one-register")
def one_register(attend):
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 6, 8, generator=generator)
    key, value = key[:5], value[:5]
    register, content = torch.randn(2, 8, generator=generator)
    for count in (1, 2, 28, 500):
        keys = torch.cat([key, register.expand(count, -1)])
        values = torch.cat([value, content.expand(count, -1)])
        wanted = F.scaled_dot_product_attention(query, keys, values)
        got = attend(query, key, value, register, content, count)
        shape = list(getattr(got, "shape", []))
        expect(shape == [6, 8], f"for 6 queries of 8 numbers it returns {shape}")
        off = (got - wanted).abs().max().item()
        expect(off < 1e-4, f"{off:.1e} from attention with {count} copies of the key")
    with Largest() as made:
        far = attend(50 * query, 50 * key, value, 50 * register, content, 10_000)
    expect(made.numel < 10_000, "somewhere there are as many numbers as copies")
    expect(far.isfinite().all(), "large scores give infinities or nan")
