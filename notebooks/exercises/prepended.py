"""Checks of chapter 17's exercises."""

import math

import torch

from exercises import exercise, expect
from mllama_lite.decoder import LanguageModel, TextConfig
from mllama_lite.families.prepended import prefix_mask
from mllama_lite.families.projectors import pixel_shuffle
from mllama_lite.families.siglip import SiglipVisionConfig, sigmoid_loss


@exercise("tokens-of-seventeen-tiles")
def tokens_of_seventeen_tiles(answer):
    expect(isinstance(answer, int) and answer > 0, "a number of tokens is above 0")
    grid = SiglipVisionConfig(image_size=512, patch_size=16).grid
    joined = pixel_shuffle(torch.zeros(17, grid**2, 1), 4)
    wanted = joined.shape[0] * joined.shape[1]
    expect(answer == wanted, f"it is {answer / wanted:.3g} times what the tiles become")


CHANGED = {  # for each letter: whose states change, causal and with a prefix
    "a": (range(9, 10), range(9, 10)),
    "b": (range(6, 10), range(0, 10)),
    "c": (range(0, 10), range(6, 10)),
    "d": (range(6, 10), range(6, 10)),
}


@torch.no_grad()
def _changed(mask):
    torch.manual_seed(0)
    config = TextConfig(
        vocab_size=30,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        rope_scaling=None,
        cross_attention_layers=(),
        num_extra_embeddings=0,
    )
    model = LanguageModel(config).model
    tokens = torch.randint(30, (1, 10))
    other = tokens.clone()
    other[0, 6] = (other[0, 6] + 1) % 30
    change = (model(tokens, mask=mask) - model(other, mask=mask)).abs().amax(-1)[0]
    return change.nonzero()[:, 0].tolist()


@exercise("who-hears-of-a-word")
def who_hears_of_a_word(answer):
    expect(answer in CHANGED, "the answer is one of the letters")
    here = torch.arange(10)[None]
    for number, prefix in enumerate((0, 9)):
        found = _changed(prefix_mask(here, 10, torch.tensor([prefix])))
        expect(
            found == list(CHANGED[answer][number]),
            f"tried {'with a prefix' if number else 'causally'}, others change",
        )


@exercise("shuffled-back")
def shuffled_back(unshuffle):
    for side, factor, size in ((4, 2, 3), (6, 3, 2), (8, 2, 5)):
        patches = torch.randn(2, side * side, size)
        found = unshuffle(pixel_shuffle(patches, factor), factor)
        expect(isinstance(found, torch.Tensor), "it returns a tensor")
        expect(
            found.shape == patches.shape,
            f"{side} patches a side, joined by {factor}: the shape is {list(found.shape)}",
        )
        expect(
            torch.equal(found, patches), f"joined by {factor}, other patches come back"
        )


@exercise("first-bias")
def first_bias(bias):
    for count in (2, 32, 1000):
        found = bias(count)
        number = isinstance(found, (int, float)) and math.isfinite(found)
        expect(number, "it returns a number")
        around = [
            sigmoid_loss(torch.full((count, count), value)).item()
            for value in (found - 0.2, found, found + 0.2)
        ]
        expect(
            around[1] < min(around[0], around[2]),
            f"with {count} pairs another bias nearby has a lower loss",
        )


def _kept(layers, text, prepended, cross_layers=0, seen=0):
    """Keys and values that are kept, counted layer by layer."""
    kept = 0
    for layer in range(layers):
        kept += seen if layer < cross_layers else text + prepended
    return kept


@exercise("how-many-tokens-a-tile")
def how_many_tokens_a_tile(most):
    for case in (
        (100, 4, 40, 8, 1601),
        (2000, 4, 40, 8, 1601),
        (20, 1, 7, 3, 17),
        (10**5, 1, 40, 8, 1601),
        (50, 2, 10, 5, 64),
    ):
        text, tiles, layers, cross, seen = case
        found = most(*case)
        expect(
            isinstance(found, int) and found >= 0,
            "it returns a whole number, 0 or more",
        )
        looked = _kept(layers, text, 0, cross, tiles * seen)
        told = f"for {text} tokens of text and {tiles} tiles in {layers} layers"
        fits = _kept(layers, text, tiles * found) <= looked
        expect(fits or found == 0, f"{told}, it keeps more than cross-attention does")
        more = _kept(layers, text, tiles * (found + 1)) <= looked
        expect(not more, f"{told}, a tile could have more tokens")
