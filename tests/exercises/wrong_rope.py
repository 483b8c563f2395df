"""Wrong answers to chapter 2's exercises."""

import math

import torch

from mllama_lite.rope import apply_rope, rope_cos_sin

RIGHT = {"base-for-eight": 500_000 * 8 ** (128 / 126), "no-score-moves": "c"}


def neighbours(x, frequencies, positions):
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())
    angles = positions[:, None] * frequencies
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.view_as_real(turned).flatten(-2)


def halves(x, angles):
    first, second = x.chunk(2, dim=-1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned.real, turned.imag), dim=-1)


def clockwise(x, frequencies, positions):
    return halves(x, -positions[:, None] * frequencies)


def positions_from_0(x, frequencies, positions):
    return halves(x, torch.arange(x.shape[-2])[:, None] * frequencies)


def left_complex(x, frequencies, positions):
    first, second = x.chunk(2, dim=-1)
    angles = positions[:, None] * frequencies
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat((turned, turned.conj()), dim=-1)


def nothing_complex(x, frequencies, positions):
    return apply_rope(x, *rope_cos_sin(frequencies, positions))


def turned_by(key, frequencies, angle):
    cos, sin = rope_cos_sin(frequencies, torch.tensor([angle]))
    return apply_rope(key.view(1, 1, 1, -1), cos, sin).flatten()


def key_itself(key, frequencies, distance):
    return key


def turned_on(key, frequencies, distance):
    return turned_by(key, frequencies, distance)


def fastest_pair_alone(key, frequencies, distance):
    back = turned_by(key, frequencies, -distance)
    alone = torch.zeros_like(back)
    alone[[0, 64]] = back[[0, 64]]
    return alone * key.norm() / alone.norm()


def too_long(key, frequencies, distance):
    return 10 * turned_by(key, frequencies, -distance)


def partner(turn, size, at, position=1):
    """What the unit vector becomes, and the other dimension that it reaches."""
    unit = torch.zeros(size)
    unit[at] = 1
    turned = turn(unit, position)
    rest = turned.clone()
    rest[at] = 0
    return turned, rest.abs().argmax().item()


def only_half_split(turn, size):
    speeds = [partner(turn, size, i)[0] for i in range(size // 2)]
    return [
        (i, i + size // 2, math.atan2(s[i + size // 2], s[i]))
        for i, s in enumerate(speeds)
    ]


def by_the_cosine(turn, size):
    """The cosine of a slow pair is 1 in fp32."""
    found = []
    for i in range(size):
        turned, j = partner(turn, size, i)
        if turned[j] > 0:
            found.append((i, j, math.acos(min(1.0, turned[i].item()))))
    return found


def far_away(turn, size):
    """At position 100 the fast pairs have come round."""
    found = []
    for i in range(size):
        turned, j = partner(turn, size, i, position=100)
        if turned[j] > 0:
            found.append((i, j, math.atan2(turned[j], turned[i]) / 100))
    return found


def any_direction(turn, size):
    found = []
    for i in range(size):
        turned, j = partner(turn, size, i)
        if i < j:
            found.append((i, j, math.atan2(abs(turned[j]), turned[i])))
    return found


WRONG = {
    "base-for-eight": [
        500_000 * 8,  # the last pair is not turned by exactly 1/theta
        500_000 / 8,
        8,
        500_000 * 8**64,
        "more",
    ],
    "no-score-moves": ["a", "b", "d"],
    "complex-turning": [
        neighbours,
        clockwise,
        positions_from_0,
        left_complex,
        nothing_complex,
    ],
    "peak-at-a-distance": [key_itself, turned_on, fastest_pair_alone, too_long],
    "whose-pairs": [only_half_split, by_the_cosine, far_away, any_direction],
    "few-pairs": [
        ([0, 1],),  # the two fastest
        ([0, 15],),  # the fastest and the slowest
        ([0],),
        ([2, 3],),
        ([0, 1, 2, 3],),  # those of the chapter
        ([0, 16],),
    ],
}
