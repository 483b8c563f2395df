"""The figures of chapter 3 against the package."""

import math

import pytest
import torch

from mllama_lite.attention import KVCache, attention_by_hand, causal_mask


@pytest.mark.parametrize("size", [2, 16, 128])
@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("token", [0, 3, None])
def test_soft_lookup(figure, size, divide, token):
    shown = figure("soft_lookup")
    shown.set("Query across", -1.4)
    shown.set("Query up", 2.1)
    shown.set("Head dim E", int(math.log2(size)))
    shown.set("Divide by \u221aE", divide)
    shown.set("Causal mask", token is not None)
    if token is not None:
        shown.set("Query's token", token)
    values = shown.values()
    query = torch.tensor(values["query"])[None, None, None]  # [B, H, T, E]
    key = torch.tensor(values["keys"])[None, None]  # [B, G, S, E]
    assert query.shape[-1] == key.shape[-1] == size
    assert query[..., :2].flatten().tolist() == pytest.approx([-1.4, 2.1])
    if not divide:
        query = query * math.sqrt(size)
    value = torch.arange(10.0, 61, 10).view(1, 1, 6, 1)
    mask = None if token is None else torch.arange(6) <= token
    output, weights = attention_by_hand(query, key, value, mask)
    assert values["weights"] == pytest.approx(weights.flatten().tolist(), abs=1e-5)
    assert values["output"] == pytest.approx(output.item(), abs=1e-3)
    if token is not None:
        assert not any(values["weights"][token + 1 :])
    best = weights.argmax().item()
    assert f"Key {best} has the largest weight" in shown.words()
    slope = (weights * (1 - weights)).sum().item()
    assert f"sum to {slope:.3f}" in shown.words()


def test_soft_lookup_says_why(figure):
    shown = figure("soft_lookup")
    assert "Key 1 is nearer, but the product counts" in shown.words()
    shown.set("Query across", 1.2)
    shown.set("Query up", -1.2)
    assert "Key 5 would fit better, but the mask hides it" in shown.words()
    shown.set("Causal mask", False)
    assert shown.values()["weights"][5] > 0.6
    assert "the mask hides" not in shown.words()


def test_soft_lookup_by_chance(figure):
    shown = figure("soft_lookup")
    shown.set("Head dim E", 7)
    assert "Two of the 128 numbers of a vector are drawn" in shown.words()
    assert "made up its mind" not in shown.words()
    divided = max(shown.values()["weights"])
    shown.set("Divide by \u221aE", False)
    assert max(shown.values()["weights"]) > 0.9 > 0.5 > divided
    assert "made up its mind" in shown.words()


def test_soft_lookup_noise_is_standard(figure):
    """The numbers that are not drawn have mean 0 and variance 1, as the chapter's."""
    shown = figure("soft_lookup")
    shown.set("Head dim E", 7)
    values = shown.values()
    hidden = torch.tensor([values["query"], *values["keys"]])[:, 2:]
    assert hidden.mean().item() == pytest.approx(0, abs=0.1)
    assert hidden.var().item() == pytest.approx(1, abs=0.15)


def test_soft_lookup_can_be_dragged(figure):
    shown = figure("soft_lookup")
    dot = shown.root.locator("circle[data-drag]").bounding_box()
    x, y = dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2
    shown.page.mouse.move(x, y)
    shown.page.mouse.down()
    shown.page.mouse.move(x - 1000, y + 30)
    shown.page.mouse.up()
    query = shown.values()["query"]
    assert query[0] == -3 and query[1] < 0.7  # at the end of its slider


def cache_of(slots, kv_heads):
    """A cache of 32 layers in bf16 with the 11B's sizes, on no device."""
    cache = KVCache(slots)
    token = torch.empty(1, kv_heads, 1, 128, dtype=torch.bfloat16, device="meta")
    for layer in range(32):
        cache.update(layer, token, token)
    return cache


@pytest.mark.parametrize("heads", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("steps", [0, 1, 11])
def test_cache_slots(figure, heads, steps):
    shown = figure("cache_slots")
    shown.set("Steps after the prompt", steps)
    shown.set("Key/value heads G", int(math.log2(heads)))
    values, used = shown.values(), 5 + steps
    assert values["bytes"] == cache_of(16, heads).num_bytes
    assert values["bytesUsed"] == cache_of(used, heads).num_bytes
    assert values["full"] == cache_of(131072, heads).num_bytes
    assert values["computed"] == used
    assert values["now"] == (1 if steps else 5)
    assert values["scores"] == 32 * 32 * used  # layers, heads, keys: no word of G
    full = values["full"] // 2**30
    assert f"a full context {full} GiB" in shown.words()


@pytest.mark.parametrize("steps", [0, 3, 11])
def test_cache_slots_without_a_cache(figure, steps):
    shown = figure("cache_slots")
    shown.set("Steps after the prompt", steps)
    shown.set("Keep keys and values", False)
    values = shown.values()
    assert values["computed"] == sum(5 + step for step in range(steps + 1))
    assert values["now"] == 5 + steps and values["bytes"] == 0
    assert f"{values['computed']} so far" in shown.words()
    drawn = shown.root.locator("svg").first.locator("rect.fill-orange").count()
    assert drawn == 8 * (5 + steps) + 1  # eight heads, and the legend


@pytest.mark.parametrize("cached, new", [(3, 3), (0, 4), (6, 1), (1, 4)])
def test_causal_piece(figure, cached, new):
    shown = figure("causal_piece")
    shown.set("Tokens in the cache", cached)
    shown.set("New tokens T", new)
    keys = cached + new
    queries, zeros = torch.zeros(1, 1, new, 4), torch.zeros(1, 1, keys, 4)
    unit = torch.eye(keys)[None, None]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    mask = causal_mask(new, keys)
    right, wrong = map(torch.Tensor, shown.values())
    want = sdpa(queries, zeros, unit, attn_mask=mask)[0, 0]
    trap = sdpa(queries, zeros, unit, is_causal=True)[0, 0]
    torch.testing.assert_close(right, want, atol=1e-6, rtol=0)
    torch.testing.assert_close(wrong, trap, atol=1e-6, rtol=0)
    crossed = shown.root.locator("text=\u2715").count()
    hidden = (mask & (trap == 0)).sum().item()
    assert crossed == hidden + (1 if cached else 0)  # and the line that explains it
    if cached:
        assert f"hides {hidden} pairs" in shown.words()
        own = torch.arange(new)
        assert not trap[own, cached + own].any() and "its own key" in shown.words()
        assert trap[0].nonzero().flatten().tolist() == [0]
        assert f"token {cached} sees key 0 alone" in shown.words()
    else:
        assert "the same triangle" in shown.words()
