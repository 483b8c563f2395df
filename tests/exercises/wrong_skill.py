"""Wrong answers to chapter 14's exercises."""

from itertools import combinations

from mllama_lite.small_model.evaluation import interval

RIGHT = {"bytes-of-a-parameter": 16, "price-of-a-rank": 3.1, "way-back": "d"}


# The longest text.


def asks_the_large_card(cost_of, room):
    length = 512
    while cost_of(length) < room:
        length *= 2
    return length // 2


def nothing_besides_tokens(cost_of, room):
    return int(512 * room / cost_of(512))


def one_token_costs_what_64_do(cost_of, room):
    small = cost_of(64)
    return 64 + int((room - small) / (small / 64))


def nothing_once(cost_of, room):
    each = (cost_of(512) - cost_of(256)) / 256
    return int(room / each)


def as_long_as_asked(cost_of, room):
    return 512


def no_whole_number(cost_of, room):
    first, second = cost_of(256), cost_of(512)
    return 256 + (room - first) / ((second - first) / 256)


# Questions until the intervals part.


def always_enough(right, other, asked):
    return 1


def a_thousand(right, other, asked):
    return 1000


def share_outside_of_interval(right, other, asked):
    factor = 1
    low, high = sorted((right, other))
    while interval(low * factor, asked * factor)[1] >= high / asked:
        factor += 1
    return factor


def more_right_and_not_more_asked(right, other, asked):
    low, high = sorted((right, other))
    for factor in range(1, asked // high + 1):
        if interval(low * factor, asked)[1] < interval(high * factor, asked)[0]:
            return factor
    return 1


def the_first_is_the_better(right, other, asked):
    factor = 1
    while (
        interval(other * factor, asked * factor)[1]
        >= (interval(right * factor, asked * factor)[0])
    ):
        factor += 1
        if factor > 500:
            return factor
    return factor


# Runs of the research question.

SHOWN = ("twemoji", "openmoji", "fluent-emoji-flat")
CHOICES = [c for n in (1, 2, 3) for c in combinations(SHOWN, n)]

WRONG = {
    "bytes-of-a-parameter": [
        4,  # the number alone
        8,  # and its gradient
        12,  # one average
        10,  # number and gradient in bf16
        18,  # a bf16 copy beside
        2,
    ],
    "price-of-a-rank": [
        0.8,  # the matrices alone
        0.4,  # of rank 8, with all that belongs to it
        1.6,  # in bf16
        2.3,  # one average
        200,
    ],
    "way-back": ["a", "b", "c"],
    "longest-text": [
        asks_the_large_card,
        nothing_besides_tokens,
        one_token_costs_what_64_do,
        nothing_once,
        as_long_as_asked,
        no_whole_number,
    ],
    "questions-to-tell": [
        always_enough,
        a_thousand,
        share_outside_of_interval,
        more_right_and_not_more_asked,
        the_first_is_the_better,
    ],
    "designers-or-pictures": [
        [(c, 24) for c in CHOICES],  # more designers are more pictures
        [(SHOWN[:n], 72 // n) for n in (1, 2, 3)],  # the same one first
        [(c, 72 // len(c)) for c in combinations(("noto", *SHOWN), 2)],
        [((one,), count) for one in SHOWN for count in (6, 24, 96)],
        [(c, 72 / len(c)) for c in CHOICES],
    ],
}
