"""Chapter 6: bugs of the local half of the encoder, and what notices them."""

from functools import cache

import torch
import torch.nn.functional as F

from bugs import a_bug, a_check, replaced
from mllama_lite.local_vision import (
    LocalVision,
    VisionConfig,
    padded_length,
    real_tokens_first,
)
from mllama_lite.small_model.evaluation import answers, exact_match, held_out
from mllama_lite.tiles import canvases
from mllama_lite.vlm import load


def _embed(half, pixels, ids, num_tiles, reshaped=False, padded_first=False):
    """`LocalVision.embed` with its two bugs."""
    patches = half.patch_embedding(pixels.flatten(0, 1)).flatten(2)  # [N·K, D, P - 1]
    if reshaped:
        patches = patches.reshape(len(patches), patches.shape[2], patches.shape[1])
    else:
        patches = patches.transpose(1, 2)
    x = patches.unflatten(0, pixels.shape[:2])
    x = half.pre_tile_positional_embedding(x, ids, num_tiles)
    class_token = half.class_embedding.expand(*x.shape[:2], 1, -1)
    x = torch.cat([class_token, x], dim=2)
    x = half.gated_positional_embedding(x, ids, num_tiles)
    missing = padded_length(x.shape[2]) - x.shape[2]
    if padded_first:
        return half.layernorm_pre(F.pad(x, (0, 0, 0, missing)))
    return F.pad(half.layernorm_pre(x), (0, 0, 0, missing))


@a_bug(
    "pad-before-the-norm",
    "A tile is filled up to a multiple of 8 before the LayerNorm and not after it: the "
    "filler holds the norm's bias instead of zeros.",
    "tests/test_parts.py::test_local_vision",
)
def pad_before_the_norm():
    def wrong(self, pixel_values, aspect_ratio_ids, num_tiles):
        arguments = self, pixel_values, aspect_ratio_ids, num_tiles
        return _embed(*arguments, padded_first=True)

    with replaced(LocalVision.embed, wrong):
        yield


@a_bug(
    "back-by-the-same-order",
    "Behind the layers the tokens are put back by the order that brought the real ones to "
    "the front, and not by its inverse.",
    "tests/test_parts.py::test_local_vision",
)
def back_by_the_same_order():
    def wrong(self, layers, x, num_tiles, keep=()):
        shape = x.shape[1:3]
        count = self.config.num_patches
        order, num_real = real_tokens_first(num_tiles, shape[0], count)
        order = order.to(x.device)
        x, kept = layers(x.flatten(1, 2)[:, order], num_real, keep)
        x, *kept = (y[:, order].unflatten(1, shape) for y in (x, *kept))
        return x, kept

    with replaced(LocalVision.in_layers, wrong):
        yield


@a_bug(
    "patches-reshaped",
    "What the convolution gives is brought from [D, patches] to [patches, D] by `reshape`, "
    "which only counts the numbers anew, and not by `transpose`.",
    "tests/test_parts.py::test_local_vision",
)
def patches_reshaped():
    def wrong(self, pixel_values, aspect_ratio_ids, num_tiles):
        arguments = self, pixel_values, aspect_ratio_ids, num_tiles
        return _embed(*arguments, reshaped=True)

    with replaced(LocalVision.embed, wrong):
        yield


SIZES = VisionConfig(
    hidden_size=16,
    attention_heads=2,
    intermediate_size=32,
    num_hidden_layers=2,
    image_size=28,
    patch_size=7,
    intermediate_layers_indices=(0, 1),
)


def as_they_begin():
    """A local half with the parameters that its class gives it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LocalVision(SIZES)


def all_random():
    """A local half without a parameter of 0 or 1, as a trained one."""
    half, generator = as_they_begin(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in half.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return half


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def embedded_by_hand(half, pixels, number, num_tiles):
    """One image [K, 3, S, S], patch by patch: [K, padded P, D]."""
    config, patch = half.config, half.config.patch_size
    weight = half.patch_embedding.weight.flatten(1)
    tile, place = half.pre_tile_positional_embedding, half.gated_positional_embedding
    of_tile = tile.embedding.weight[number].view(config.max_num_tiles, -1)
    on_canvas = place.tile_embedding.weight[number].view(place.shape)
    share = place.gate.tanh()
    x = torch.zeros(4, padded_length(config.num_patches), config.hidden_size)
    for k in range(4):
        tokens = [half.class_embedding]
        for top in range(0, config.image_size, patch):
            for left in range(0, config.image_size, patch):
                one = pixels[k, :, top : top + patch, left : left + patch].flatten()
                token = weight @ one
                if k < num_tiles:
                    token = token + tile.gate.tanh() * of_tile[k]
                tokens.append(token)
        for p, token in enumerate(tokens):
            token = token + (1 - share) * place.embedding[p]
            if k < num_tiles:
                token = token + share * on_canvas[k, p]
            x[k, p] = half.layernorm_pre(token)
    return x


@torch.no_grad()
def off_by_hand(half):
    pixels = noise(1, 4, 3, 28, 28)
    by_hand = embedded_by_hand(half, pixels[0], number=2, num_tiles=2)
    return (half.embed(pixels, torch.tensor([2]), 2)[0] - by_hand).abs().max()


@torch.no_grad()
def off_from_masked(num_tiles):
    """How far the real tokens are from layers with a mask and no order, by tile: [K]."""
    half, tokens = all_random(), padded_length(SIZES.num_patches)
    x = noise(1, 4, tokens, 16)
    padding = torch.ones(4, tokens, dtype=torch.bool)
    padding[:num_tiles, : SIZES.num_patches] = False
    padding = padding.flatten()
    allowed = ~(padding[:, None] & padding)
    want = x.flatten(1, 2)
    for layer in half.transformer.layers:
        normed, own = layer.input_layernorm(want), layer.self_attn
        query, key, value = (
            part(normed).unflatten(-1, (2, 8)).transpose(1, 2)
            for part in (own.q_proj, own.k_proj, own.v_proj)
        )
        scores = (query @ key.transpose(2, 3) / 8**0.5).masked_fill(~allowed, -1e30)
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
        want = want + own.o_proj(mixed)
        want = want + layer.mlp(layer.post_attention_layernorm(want))
    got, _ = half.in_layers(half.transformer, x, num_tiles)
    off = (got - want.unflatten(1, (4, tokens))).abs()
    return off[:, :, : SIZES.num_patches].amax(dim=(0, 2, 3))


@a_check("shapes, on every canvas")
@torch.no_grad()
def shapes():
    half = all_random()
    for number, (rows, columns) in enumerate(canvases(), start=1):
        x, kept = half(noise(1, 4, 3, 28, 28), torch.tensor([number]), rows * columns)
        assert all(one.shape == (1, 4, 24, 16) for one in (x, *kept))


@a_check("embedding written out, parameters as they begin")
def embedding_fresh():
    assert off_by_hand(as_they_begin()) < 1e-5


@a_check("embedding written out, every parameter random")
def embedding_random():
    assert off_by_hand(all_random()) < 1e-5


@a_check("layers with a mask, one tile")
def one_tile():
    assert off_from_masked(num_tiles=1)[0] < 1e-4


@a_check("layers with a mask, the first of two tiles")
def first_tile():
    assert off_from_masked(num_tiles=2)[0] < 1e-4


@a_check("layers with a mask, both of two tiles")
def both_tiles():
    assert off_from_masked(num_tiles=2)[:2].max() < 1e-4


@cache
def single_digits():
    """The shipped model, and ten pictures with one digit each."""
    items = [one for one in held_out("validation", 10) if one.row == "one digit"]
    return load(dtype="float32", device="cpu"), items


@a_check("the shipped model reads eight of ten single digits")
def answered():
    model, items = single_digits()
    assert exact_match(items, answers(model, items))["all"][0] >= 8
