"""Chapter 2: bugs of RoPE, and what notices them."""

import torch

from bugs import a_bug, a_check, replaced
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.rope import (
    RopeScaling,
    apply_rope,
    apply_rope_interleaved,
    rope_cos_sin,
    rope_frequencies,
    to_half_split,
    to_interleaved,
)
from mllama_lite.vlm import load


@a_bug(
    "turned-clockwise",
    "A sign is lost in the turning: every pair is turned clockwise.",
    "tests/test_parts.py::test_layouts_are_a_permutation_apart",
)
def turned_clockwise():
    right = apply_rope

    def wrong(x, cos, sin):
        return right(x, cos, -sin)

    with replaced(apply_rope, wrong):
        yield


@a_bug(
    "frequencies-in-bf16",
    "The frequencies are rounded to bf16, as a buffer is when its module is cast.",
    "tests/test_parts.py::test_rope_frequencies",
)
def frequencies_in_bf16():
    right = rope_frequencies

    def wrong(head_dim, theta=500000.0, scaling=None):
        return right(head_dim, theta, scaling).bfloat16().float()

    with replaced(rope_frequencies, wrong):
        yield


@a_bug(
    "reordered-across-heads",
    "Rows are reordered from one layout to the other in the whole matrix at once, and not "
    "within each head.",
    "tests/test_checkpoint.py::test_meta_layout",
)
def reordered_across_heads():
    there, back = to_half_split, to_interleaved
    with (
        replaced(to_half_split, lambda weight, num_heads: there(weight, 1)),
        replaced(to_interleaved, lambda weight, num_heads: back(weight, 1)),
    ):
        yield


def vectors(count):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 1, 1, count, 128, generator=generator)


@a_check("scores depend on the distance alone, and lengths are kept")
def distance_alone():
    (query, key), scores = vectors(20), []
    for start in (0, 5, 60):
        turned = []
        for x, position in ((query, start + 3), (key, start)):
            place = torch.tensor([position])
            turned.append(apply_rope(x, *rope_cos_sin(rope_frequencies(128), place)))
            assert torch.allclose(turned[-1].norm(dim=-1), x.norm(dim=-1), rtol=1e-5)
        scores.append((turned[0] * turned[1]).sum(-1))
    assert (scores[0] - scores[1]).abs().max() < 1e-3
    assert (scores[0] - scores[2]).abs().max() < 1e-3


def error(m, n):
    """Of the scores of 50 pairs at m and n, against the formula in fp64."""
    query, key = vectors(50).double()
    plain = 5e5 ** (-torch.arange(64, dtype=torch.float64) / 64)
    turns = 8192 * plain / (2 * torch.pi)
    keep = ((turns - 1) / 3).clamp(0, 1)
    omega = (1 - keep) * plain / 8 + keep * plain
    first, second = (torch.complex(*x.chunk(2, dim=-1)) for x in (query, key))
    wanted = (
        first * second.conj() * torch.polar(1.0 + 0 * omega, (m - n) * omega)
    ).real
    frequencies, turned = rope_frequencies(128, scaling=RopeScaling()), []
    for x, position in ((query, m), (key, n)):
        cos, sin = rope_cos_sin(frequencies, torch.tensor([position]))
        turned.append(apply_rope(x.bfloat16(), cos, sin).double())
    off = (turned[0] * turned[1]).sum(-1) - wanted.sum(-1)
    return (off.square().mean() / wanted.sum(-1).square().mean()).sqrt()


@a_check("in bf16: a score at position 100,000 with a key 7 back, to 1 in 100")
def key_7_back():
    assert error(100_000, 99_993) < 0.01


@a_check("in bf16: a score at position 100,000 with the first key, to 1 in 100")
def first_key():
    assert error(100_000, 0) < 0.01


@a_check("rows in the other layout and back again")
def there_and_back():
    weight = torch.randn(6 * 32, 50)
    there = to_half_split(weight, 6)
    assert not torch.equal(there, weight)
    assert torch.equal(to_interleaved(there, 6), weight)


def change_of_scores(num_heads):
    """Between interleaved weights and the same weights reordered to half-split."""
    generator, size = torch.Generator().manual_seed(num_heads), 8 * num_heads
    hidden = torch.randn(1, 6, 32, generator=generator)
    weights = torch.randn(2, size, 32, generator=generator) / 32**0.5
    turns, scores = rope_cos_sin(rope_frequencies(8), torch.arange(6)), []
    for reorder, turn in (
        (lambda weight: weight, apply_rope_interleaved),
        (lambda weight: to_half_split(weight, num_heads), apply_rope),
    ):
        query, key = (
            turn((hidden @ reorder(w).T).unflatten(-1, (-1, 8)).transpose(1, 2), *turns)
            for w in weights
        )
        scores.append(query @ key.transpose(-2, -1))
    return (scores[0] - scores[1]).abs().max()


@a_check("a head of Meta's weights: the scores stay")
def one_head():
    assert change_of_scores(num_heads=1) < 1e-4


@a_check("four heads of Meta's weights: the scores stay")
def four_heads():
    assert change_of_scores(num_heads=4) < 1e-4


@a_check("answers of the shipped model")
def answers_of_the_shipped_model():
    vlm, picture = load(dtype="float32", device="cpu"), "tall.png"
    ask = lambda text: vlm.ask(text, find_folder() / "pictures" / picture)
    assert ask("Read the digits from top to bottom.") == "9 1 6"
    assert ask("What is the red digit?") == "9"
