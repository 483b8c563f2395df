"""Checks of chapter 3's exercises."""

import torch

from exercises import exercise, expect
from exercises.largest import Largest
from mllama_lite.attention import (
    KVCache,
    SelfAttention,
    attention_by_hand,
    causal_mask,
)


@exercise("cache-bytes")
def cache_bytes(answer):
    cache = KVCache(capacity=1)
    for layer in range(80):
        token = torch.zeros(1, 8, 1, 128, dtype=torch.bfloat16)
        cache.update(layer, token, token)
    expect(answer != cache.num_bytes // 2, "what is kept besides the keys?")
    expect(answer != cache.num_bytes * 8, "who shares a key here?")
    expect(answer == cache.num_bytes, "layers, heads, numbers a head: what is missing?")


@exercise("previous-token")
def previous_token(query, key):
    for name, x in (("query", query), ("key", key)):
        expect(torch.is_tensor(x) and x.shape == (6, 8), f"the {name} is not [6, 8]")
    one = lambda x: x.float()[None, None]  # [1, 1, 6, 8]
    _, weights = attention_by_hand(one(query), one(key), one(key), causal_mask(6, 6))
    for row in range(1, 6):
        share = weights[0, 0, row, row - 1].item()
        expect(share > 0.9, f"token {row} looks at token {row - 1} with {share:.2f}")


@exercise("one-head")
def one_head(head):
    torch.manual_seed(0)
    for tokens, size in ((5, 8), (7, 16), (1, 8)):
        layer = SelfAttention(size, num_heads=1, num_kv_heads=1, head_dim=size // 2)
        parts = (layer.q_proj, layer.k_proj, layer.v_proj, layer.o_proj)
        matrices = [part.weight.detach() for part in parts]
        x = torch.randn(2, tokens, size)
        still = (
            torch.ones(1, 1, tokens, size // 4),
            torch.zeros(1, 1, tokens, size // 4),
        )
        with torch.no_grad():
            wanted = layer(x, *still)
            got = head(x, *matrices)
        shape = list(getattr(got, "shape", []))
        expect(shape == list(x.shape), f"for x of {list(x.shape)} it returns {shape}")
        if tokens > 1:
            later = x.clone()
            later[:, -1] += 1
            same = torch.allclose(
                head(later, *matrices)[:, :-1], got[:, :-1], atol=1e-5
            )
            expect(same, "a change of the last token changes what comes before it")
        off = (got - wanted).abs().max().item()
        expect(off < 1e-4, f"with {tokens} tokens it is {off:.1e} from SelfAttention")


@exercise("blockwise")
def blockwise(attend):
    torch.manual_seed(0)
    query, key, value = (torch.randn(64, 4) for _ in range(3))
    wanted, _ = attention_by_hand(*(x[None, None] for x in (query, key, value)))
    for block in (16, 10):
        with Largest() as made:
            got = attend(query, key, value, block)
        shape = list(getattr(got, "shape", []))
        expect(shape == [64, 4], f"for 64 queries of 4 numbers it returns {shape}")
        off = (got - wanted[0, 0]).abs().max().item()
        expect(off < 1e-4, f"with blocks of {block} keys it is {off:.1e} off")
        expect(made.numel < 64 * 64, "somewhere there are scores of all keys at once")
    far = attend(50 * query, 50 * key, value, 16)
    expect(far.isfinite().all(), "large scores give infinities or nan")
