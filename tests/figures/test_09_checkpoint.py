"""The figures of chapter 9 against the package."""

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from mllama_lite.checkpoints.tensor_files import read_safetensors
from mllama_lite.errors import InputError
from mllama_lite.rope import (
    apply_rope,
    apply_rope_interleaved,
    rope_cos_sin,
    rope_frequencies,
    to_half_split,
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


WRITTEN = {
    "gate": torch.tensor([0.5]).bfloat16(),
    "norm": torch.tensor([1.5, 1.25, 1.75]).bfloat16(),
    "weight": torch.tensor([[1.0, 2], [3, 4]]).bfloat16(),
}


def test_file_of_tensors_is_the_librarys(figure):
    shown = figure("file_of_tensors")
    shown.set("Start from", "as written")
    assert bytes(shown.values()["bytes"]) == save(WRITTEN)
    assert shown.values()["refused"] is None
    assert "All tensors are what was written." in shown.words()


@pytest.mark.parametrize(
    "settings, refusal",
    [
        ({"Start from": "weight two bytes early"}, "weight begins at byte 6"),
        ({"Start from": "norm of another shape"}, "norm has 6 bytes for [2, 2]"),
        ({"Start from": "cut off"}, "its tensors end at byte 208, it has 204"),
        ({"Start from": "places exchanged"}, None),
        (
            {"Start from": "as written", "Bytes at the end": -20},
            "its header does not fit into its 188 bytes",
        ),
        ({"Start from": "as written", "Bytes at the end": 3}, "it has 211"),
        (
            {"Start from": "as written", "Tensor": "gate", "Ends at byte": 1},
            "gate has 1 bytes for [1]",
        ),
        (
            {"Start from": "as written", "Tensor": "weight", "Shape": "4"},
            None,
        ),
        (
            {
                "Start from": "as written",
                "Tensor": "weight",
                "Begins at byte": 10,
                "Ends at byte": 18,
            },
            "weight begins at byte 10, what is before ends at 8",
        ),
    ],
)
def test_file_of_tensors_is_refused_as_by_the_package(
    figure, tmp_path, settings, refusal
):
    shown = figure("file_of_tensors")
    for label, value in settings.items():
        shown.set(label, value)
    values, path = shown.values(), tmp_path / "tiny.safetensors"
    data = bytes(values["bytes"])
    path.write_bytes(data)
    if refusal is None:
        assert values["refused"] is None
        tensors, _ = read_safetensors(path)
        theirs = load(data)
        assert list(tensors) == list(values["numbers"])
        for name, stored in tensors.items():
            read = stored.read()
            assert torch.equal(read, theirs[name])
            assert values["numbers"][name] == read.flatten().tolist()
        assert "not what was written, and nothing in the file tells" in shown.words()
    else:
        with pytest.raises(InputError) as caught:
            read_safetensors(path)
        assert f"({values['refused']})" in str(caught.value)
        with pytest.raises(SafetensorError):
            load(data)
        assert refusal in shown.words()


def test_file_of_tensors_reads_other_bytes(figure):
    """Without checks an offset that is one byte off gives other numbers."""
    shown = figure("file_of_tensors")
    shown.set("Start from", "as written")
    shown.set("Tensor", "norm")
    shown.set("Begins at byte", 3)
    shown.set("Ends at byte", 9)
    data = torch.cat([t.flatten() for t in WRITTEN.values()]).view(torch.uint8)
    want = data[3:9].clone().view(torch.bfloat16).tolist()
    assert shown.values()["numbers"]["norm"] == pytest.approx(want, rel=1e-9, abs=0)
    assert "norm would not be what was written" in shown.words()
