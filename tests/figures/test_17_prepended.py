"""The figures of chapter 17 against the package."""

import itertools

import torch

from mllama_lite.cross_attention import VisionCache, make_layer
from mllama_lite.decoder import TextConfig
from mllama_lite.families.prepended import prefix_mask


def test_prefix_mask(figure):
    shown = figure("prefix_mask")
    for image, question, answer in itertools.product((1, 4, 6), (1, 4), (1, 3)):
        shown.set("Tokens of the image", image)
        shown.set("Tokens of the question", question)
        shown.set("Tokens of the answer", answer)
        length = image + question + answer
        for way, prefix in (
            ("from left to right", 0),
            ("in both directions", image + question),
        ):
            shown.set("The prompt is read", way)
            here = torch.arange(length)[None]
            mask = prefix_mask(here, length, torch.tensor([prefix]))[0, 0]
            assert shown.values() == mask.tolist()
            if prefix:
                more = int(mask.triu(1).sum())
                assert f"In {more} places a token sees" in shown.words()
            else:
                assert "No token sees what stands after it" in shown.words()


def kept(images, text, tokens):
    """Bytes in bf16, from the shapes that the package makes for the 11B."""
    config = TextConfig()
    with torch.device("meta"):
        layers = [make_layer(config, i) for i in range(config.num_hidden_layers)]
        key = layers[0].self_attn.k_proj(torch.empty(1, config.hidden_size))
        cross = [layers[i] for i in config.cross_attention_layers]
        seen = VisionCache.from_images(
            cross[:1], [[torch.empty(1, config.hidden_size)]]
        )
    of_token = 2 * key.numel() * 2
    of_vision = sum(t.numel() * 2 for t in (*seen.keys.values(), *seen.values.values()))
    selves = len(config.self_attention_layers)
    tiles = 4 * images
    return {
        "cross-attention": [
            selves * text * of_token,
            len(cross) * tiles * 1601 * of_vision,
        ],
        "as tokens": [
            config.num_hidden_layers * text * of_token,
            config.num_hidden_layers * tiles * tokens * of_token,
        ],
    }


def test_kept_tokens(figure):
    shown = figure("kept_tokens")
    for images, text in itertools.product((0, 1, 16), (0, 200, 8000)):
        shown.set("Images of four tiles", images)
        shown.set("Tokens of text", text)
        for name, tokens in (("1,601", 1601), ("64", 64)):
            shown.set("Tokens a tile, in the text", name)
            want = kept(images, text, tokens)
            assert shown.values() == want
            looked, read = map(sum, want.values())
            words = shown.words()
            if looked == read == 0:
                assert "Nothing is kept" in words
            else:
                assert words.startswith("As tokens") == (read > looked), words
