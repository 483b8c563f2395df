"""The figures of chapter 9 against the package."""

import pytest
import torch

from mllama_lite.rope import (
    apply_rope,
    apply_rope_interleaved,
    rope_cos_sin,
    rope_frequencies,
    to_half_split,
    to_interleaved,
)

HEADS, SIZE, LETTERS = 2, 8, 6
FREQUENCIES = rope_frequencies(SIZE, 10000.0)


def metas_matrices():
    """W_q and W_k [H·E, letters] in Meta's order: what the figure's comment says."""
    query, key = torch.zeros(2, HEADS, SIZE, LETTERS)
    for letter in range(LETTERS):
        query[0, 4 + letter // 2, letter] = key[0, 4 + letter // 2, letter] = 1 - 2 * (
            letter % 2
        )
    for pair in (0, 1):
        key[1, 2 * pair + 1] = 1
        query[1, 2 * pair] = FREQUENCIES[pair].sin()
        query[1, 2 * pair + 1] = FREQUENCIES[pair].cos()
    return 16 * query.flatten(0, 1), key.flatten(0, 1)


def attention(query, key, gap, rotate):
    """Weights of the two heads, each [T, T], from matrices [H·E, letters]."""
    places, weights = torch.arange(LETTERS), []
    queries, keys = (w.T.view(1, LETTERS, HEADS, SIZE) for w in (query, key))
    queries, keys = queries.transpose(1, 2), keys.transpose(1, 2)  # [B, H, T, E]
    keys = rotate(keys, *rope_cos_sin(FREQUENCIES, places))
    for head, start in enumerate((LETTERS + gap, 0)):
        turned = rotate(queries, *rope_cos_sin(FREQUENCIES, places + start))
        scores = turned[0, head] @ keys[0, head].T / SIZE**0.5
        if head == 1:
            unseen = torch.ones(LETTERS, LETTERS, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(unseen, -torch.inf)
        weights.append(scores.softmax(-1))
    return torch.stack(weights)


@pytest.mark.parametrize("of_queries", [False, True])
@pytest.mark.parametrize("of_keys", [False, True])
@pytest.mark.parametrize("gap", [0, 14, 25])
def test_row_order(figure, of_queries, of_keys, gap):
    shown = figure("row_order")
    shown.set("Reorder the rows of queries", of_queries)
    shown.set("Reorder the rows of keys", of_keys)
    shown.set("Places between", gap)
    query, key = metas_matrices()
    if of_queries:
        query = to_half_split(query, HEADS)
    if of_keys:
        key = to_half_split(key, HEADS)
    want = attention(query, key, gap, apply_rope)
    values = shown.values()
    assert (torch.tensor(values["weights"]) - want).abs().max() < 1e-4
    found = [
        int((weights.diagonal(-head) > 0.5).sum()) for head, weights in enumerate(want)
    ]
    assert values["found"] == found
    assert f"in {found[0]} of 6 cases, {6 + gap} places back" in shown.words()
    assert f"head 1 in {found[1]} of 5" in shown.words()


def test_row_order_both_half_right_one_fatal(figure):
    shown = figure("row_order")
    assert shown.values()["found"] == [3, 0]  # both wrong, as the file has them
    assert "the same rows meet, but at the wrong speeds" in shown.words()
    shown.set("Reorder the rows of queries", True)
    assert shown.values()["found"] == [0, 0]
    assert "The keys alone are in Meta’s order" in shown.words()
    shown.set("Reorder the rows of keys", True)
    assert shown.values()["found"] == [6, 5]
    metas = attention(*metas_matrices(), 14, apply_rope_interleaved)
    assert (torch.tensor(shown.values()["weights"]) - metas).abs().max() < 1e-4


@pytest.mark.parametrize("rows", [4, 8, 16])
@pytest.mark.parametrize(
    "way, step", [("to half-split", to_half_split), ("its inverse", to_interleaved)]
)
@pytest.mark.parametrize("times", [0, 1, 2, 3, 4])
def test_row_shuffle(figure, rows, way, step, times):
    shown = figure("row_shuffle")
    shown.set("Rows a head", str(rows))
    shown.set("Permutation", way)
    shown.set("Times applied", times)
    want = torch.arange(rows)[:, None]
    for _ in range(times):
        want = step(want, 1)
    values, order = shown.values(), want.flatten().tolist()
    assert values["order"] == order
    turned = list(zip(order[: rows // 2], order[rows // 2 :]))
    pairs = [(2 * i, 2 * i + 1) for i in range(rows // 2)]
    assert values["right"] == sum(a == b for a, b in zip(turned, pairs))
    if times == 1 and way == "to half-split":
        assert values["right"] == rows // 2
        assert f"all {rows // 2} pairs are turned together" in shown.words()
    back = order == list(range(rows))
    assert back == ("All rows are where they were" in shown.words())
