"""Chapter 3: bugs of attention, and what notices them."""

import torch

from bugs import a_bug, a_check, replaced
from mllama_lite.attention import (
    KVCache,
    SelfAttention,
    attention_by_hand,
    causal_mask,
    grouped_attention,
)
from mllama_lite.rope import rope_cos_sin, rope_frequencies


@a_bug(
    "heads-repeated-as-a-block",
    "Shared keys are repeated as a block (`repeat`) and not each beside itself "
    "(`repeat_interleave`): query heads read the keys of another group.",
    "tests/test_parts.py::test_grouped_attention",
)
def heads_repeated_as_a_block():
    right = grouped_attention

    def wrong(query, key, value, mask=None, causal=False):
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat(1, times, 1, 1), value.repeat(1, times, 1, 1)
        return right(query, key, value, mask, causal)

    with replaced(grouped_attention, wrong):
        yield


@a_bug(
    "causal-with-a-cache",
    "The kernel's own causal mask is used with a cache as well: it puts the first query "
    "beside the first key, although the queries are the last of the tokens.",
    "tests/test_inference.py::test_conversation_reuses_its_caches",
)
def causal_with_a_cache():
    def wrong(query, key, value, mask=None, causal=False):
        if query.shape[2] == 1:  # one token sees everything, and needs no mask
            causal = False
        return torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=causal or mask is not None, enable_gqa=True
        )

    with replaced(grouped_attention, wrong):
        yield


def largest_difference(kv_heads):
    generator = torch.Generator().manual_seed(kv_heads)
    query = torch.randn(2, 8, 5, 16, generator=generator)
    key, value = torch.randn(2, 2, kv_heads, 5, 16, generator=generator)
    by_hand, _ = attention_by_hand(query, key, value, causal_mask(5, 5))
    fast = grouped_attention(query, key, value, causal=True)
    return (by_hand - fast).abs().max()


@a_check("written out, every head its own keys")
def own_keys():
    assert largest_difference(kv_heads=8) < 1e-5


@a_check("written out, one key for all heads")
def one_key():
    assert largest_difference(kv_heads=1) < 1e-5


@a_check("written out, four heads a key")
def shared_keys():
    assert largest_difference(kv_heads=2) < 1e-5


def in_pieces(pieces):
    """Eight tokens through a layer at once, and in pieces with a cache."""
    torch.manual_seed(0)
    layer, hidden = SelfAttention(32, 4, 2, 8), torch.randn(1, 8, 32)
    cos, sin = rope_cos_sin(rope_frequencies(8, 1e4), torch.arange(8)[None, None])
    with torch.no_grad():
        whole, cache, parts, done = layer(hidden, cos, sin), KVCache(8), [], 0
        for count in pieces:
            new = slice(done, done + count)
            mask = causal_mask(count, done + count)[None, None] if count > 1 else None
            parts.append(
                layer(hidden[:, new], cos[:, :, new], sin[:, :, new], cache, mask=mask)
            )
            done = cache.length = done + count
    return (whole - torch.cat(parts, dim=1)).abs().max()


@a_check("prompt, then token by token")
def token_by_token():
    assert in_pieces([5, 1, 1, 1]) < 1e-5


@a_check("a piece of three tokens after five")
def three_after_five():
    assert in_pieces([5, 3]) < 1e-5
