"""Checks of chapter 2's exercises."""

import math
from functools import cache
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from exercises import exercise, expect
from mllama_lite import decoder
from mllama_lite.rope import (
    apply_rope,
    apply_rope_interleaved,
    rope_cos_sin,
    rope_frequencies,
)
from mllama_lite.small_model.evaluation import Item, answers, exact_match
from mllama_lite.small_model.questions import ask
from mllama_lite.small_model.scenes import draw_scene, load_masks
from mllama_lite.vlm import load


@exercise("base-for-eight")
def base_for_eight(answer):
    number = isinstance(answer, (int, float)) and answer > 1
    expect(number, "a base is a number above 1")
    wanted = rope_frequencies(128)[-1].item() / 8
    slowest = rope_frequencies(128, float(answer))[-1].item()
    expect(slowest > 0, "with this base the slowest pair stands still in fp32")
    times = 8 * wanted / slowest
    expect(
        abs(times / 8 - 1) < 1e-3,
        f"with this base the slowest pair turns {times:.3g} times as slowly",
    )


@exercise("no-score-moves")
def no_score_moves(answer):
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 6, 8)
    cos, sin = rope_cos_sin(rope_frequencies(8, 100.0), torch.arange(6))
    still = torch.ones_like(cos), torch.zeros_like(sin)
    one_more = torch.tensor(1.0).cos() * torch.ones(4), torch.tensor(1.0).sin()
    turned = lambda x: apply_rope(x, cos, sin)
    swapped = lambda x: x.roll(4, dims=-1)  # of each pair, the second comes first
    changes = {
        "a": (apply_rope(query, cos, -sin), apply_rope(key, cos, -sin)),
        "b": (turned(turned(query)), apply_rope(key, *still)),
        "c": [apply_rope(turned(x), *one_more) for x in (query, key)],
        "d": [turned(swapped(x)) for x in (query, key)],
    }
    expect(answer in changes, "the answer is one of the letters")
    score = lambda q, k: q @ k.transpose(-2, -1)
    moved = (score(*changes[answer]) - score(turned(query), turned(key))).abs().max()
    hints = {
        "a": "does a score tell two before from two after?",
        "b": "is the difference of the positions still what counts?",
        "d": "exchanged like this, which way round does a pair turn?",
    }
    expect(moved < 1e-4, hints.get(answer))


class _Complex(TorchDispatchMode):
    """Remembers whether any operation gave complex numbers."""

    seen = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.seen = self.seen or (torch.is_tensor(result) and result.is_complex())
        return result


@exercise("complex-turning")
def complex_turning(turn):
    torch.manual_seed(0)
    for size, start in ((8, 0), (64, 0), (8, 900)):
        frequencies, positions = rope_frequencies(size), start + torch.arange(5)
        x = torch.randn(2, 3, 5, size)
        with _Complex() as made:
            got = turn(x, frequencies, positions)
        shape = list(getattr(got, "shape", []))
        expect(shape == list(x.shape), f"for x of {list(x.shape)} it returns {shape}")
        expect(not got.is_complex(), "what it returns is complex")
        expect(
            (got[:, :, 0] - x[:, :, 0]).abs().max() < 1e-4 or start,
            "position 0 is turned",
        )
        off = (got - apply_rope(x, *rope_cos_sin(frequencies, positions))).abs().max()
        expect(
            off < 1e-3,
            f"with E = {size}, from position {start} on, it is {off:.2g} from apply_rope",
        )
        expect(made.seen, "there is no complex number in it")


@exercise("peak-at-a-distance")
def peak_at_a_distance(make):
    frequencies, away = rope_frequencies(128), torch.arange(401)
    for distance, seed in ((100, 0), (7, 1), (300, 2)):
        key = torch.randn(128, generator=torch.Generator().manual_seed(seed))
        query = make(key, frequencies, distance)
        shape = list(getattr(query, "shape", []))
        expect(shape == [128], f"for a key of 128 numbers it returns {shape}")
        longer = (query.norm() / key.norm()).item()
        expect(abs(longer - 1) < 1e-3, f"it is {longer:.3g} times as long as the key")
        asks = apply_rope(
            query.view(1, 1, 1, 128), *rope_cos_sin(frequencies, 1000 + away[:1])
        )
        keys = apply_rope(
            key.repeat(1, 1, 401, 1), *rope_cos_sin(frequencies, 1000 - away)
        )
        scores = (asks * keys).sum(-1)[0, 0]  # for the distances 0 to 400
        best = scores.argmax().item()
        expect(best == distance, f"asked for {distance}, it peaks at {best}")
        far = scores[(away - distance).abs() > 20].max() / scores[best]
        expect(
            far < 0.9,
            f"asked for {distance}, it reaches {far:.0%} of the peak more than 20 away",
        )


def _turning(pairs, apply=None):
    """A turning of vectors by these (first, second, radians), or by one of the package."""

    def turn(x, position):
        if apply:
            speeds = torch.tensor([speed for _, _, speed in pairs])
            cos, sin = rope_cos_sin(speeds, torch.tensor([position]))
            return apply(x.float().view(1, 1, 1, -1), cos, sin).flatten()
        turned = x.clone().float()
        for first, second, speed in pairs:
            cos, sin = math.cos(position * speed), math.sin(position * speed)
            turned[first] = x[first] * cos - x[second] * sin
            turned[second] = x[second] * cos + x[first] * sin
        return turned

    return turn


@exercise("whose-pairs")
def whose_pairs(find):
    size = 16
    speeds = rope_frequencies(size).tolist()
    half = [(i, i + size // 2, speed) for i, speed in enumerate(speeds)]
    neighbours = [(2 * i, 2 * i + 1, speed) for i, speed in enumerate(speeds)]
    mixed = torch.randperm(size, generator=torch.Generator().manual_seed(0)).tolist()
    strange = list(zip(mixed[::2], mixed[1::2], speeds[::-1]))
    for name, pairs, apply in (
        ("the half-split layout", half, apply_rope),
        ("the interleaved layout", neighbours, apply_rope_interleaved),
        ("pairs in no order", strange, None),
    ):
        got = {
            (int(a), int(b)): float(speed)
            for a, b, speed in find(_turning(pairs, apply), size)
        }
        expect(len(got) == size // 2, f"{name}: it finds {len(got)} pairs of 8")
        for first, second, speed in pairs:
            expect(
                (first, second) in got or (second, first) in got,
                f"{name}: of {first} and of {second}, the partner is wrong",
            )
            expect(
                (first, second) in got,
                f"{name}: the pair of {first} and {second} is turned the other way",
            )
            said = got[first, second]
            expect(
                abs(said / speed - 1) < 0.01,
                f"{name}: the speed of {first} and {second} is not {said:.3g}",
            )


@cache
def _to_read():
    """The shipped model, and questions for digits in order, as in the chapter."""
    rng, masks, items = np.random.default_rng(2), load_masks("validation"), []
    while len(items) < 32:
        scene = draw_scene(rng, masks, 3)
        question = ask(rng, scene, "read")
        if question:
            items.append(Item("read", question, scene.image))
    return load(dtype="float32", device="cpu"), items


@cache
def _read(pairs):
    """How many answers are right if these pairs alone are turned."""
    vlm, items = _to_read()
    on = torch.zeros(16)
    on[list(pairs)] = 1
    way = lambda frequencies, positions: rope_cos_sin(on * frequencies, positions)
    with torch.no_grad(), mock.patch.object(decoder, "rope_cos_sin", way):
        return exact_match(items, answers(vlm, items))["all"][0]


@exercise("few-pairs")
def few_pairs(pairs):
    pairs = tuple(sorted({int(pair) for pair in pairs}))
    expect(len(pairs) <= 2, f"these are {len(pairs)} pairs")
    expect(all(0 <= pair < 16 for pair in pairs), "the pairs are numbered 0 to 15")
    usual, right = _read(tuple(range(16))), _read(pairs)
    expect(
        right >= 0.8 * usual, f"of {usual} answers that were right {right} are right"
    )
