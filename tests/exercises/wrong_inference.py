"""Wrong answers to chapter 10's exercises."""

import torch

RIGHT = {"tokens-that-stay": 7, "rows-without-end": "d"}


def looks_at_each_piece_alone(pieces, stop):
    for piece in pieces:
        if stop in piece:
            yield piece[: piece.index(stop)]
            return
        yield piece


def waits_for_the_end(pieces, stop):
    yield "".join(pieces).partition(stop)[0]


def holds_as_much_as_the_stop_is_long(pieces, stop):
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held.partition(stop)[0]
            return
        keep = len(stop) - 1
        yield held[: len(held) - keep]
        held = held[max(0, len(held) - keep) :]
    yield held


def forgets_what_it_held(pieces, stop):
    held = ""
    for piece in pieces:
        held += piece
        if stop in held:
            yield held.partition(stop)[0]
            return
        keep = max(n for n in range(len(stop)) if held.endswith(stop[:n]))
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]


def begins_anew_after_a_wrong_character(pieces, stop):
    matched = 0
    for character in "".join(pieces):
        if character == stop[matched]:
            matched += 1
            if matched == len(stop):
                return
        else:
            yield stop[:matched] + character
            matched = 0
    yield stop[:matched]


def scores(vlm, prompt, choices, shift=1, average=False, skip=0):
    found = []
    for choice in choices:
        text = torch.tensor(prompt + choice)
        told = vlm.logits(text.tolist()).log_softmax(dim=-1)
        places = torch.arange(len(prompt) + skip, len(text))
        values = told[places - shift, text[places]]
        found.append(values.mean() if average else values.sum())
    return torch.stack(found).argmax().item()


def not_shifted(vlm, prompt, choices):
    return scores(vlm, prompt, choices, shift=0)


def mean_of_the_tokens(vlm, prompt, choices):
    return scores(vlm, prompt, choices, average=True)


def without_the_first_token(vlm, prompt, choices):
    return scores(vlm, prompt, choices, skip=1)


def first_token_alone(vlm, prompt, choices):
    told = vlm.logits(prompt)[-1]
    return max(range(len(choices)), key=lambda i: told[choices[i][0]].item())


def drawn_anew_from_p(p, q):
    return (p / q.clamp(min=1e-30)).clamp(max=1), p


def nothing_kept(p, q):
    return torch.zeros_like(p), p


def kept_by_p(p, q):
    missing = (p - q).clamp(min=0)
    return p, missing / missing.sum()


def no_case_for_equals(p, q):
    missing = (p - q).clamp(min=0)
    return (p / q.clamp(min=1e-30)).clamp(max=1), missing / missing.sum()


def no_case_for_zeros(p, q):
    missing = (p - q).clamp(min=0)
    return (p / q).clamp(max=1), missing / missing.sum().clamp(min=1e-30)


WRONG = {
    "tokens-that-stay": [
        4,  # at temperature 1
        2,  # multiplied by the temperature
        6,  # the token with which the sum passes p is cut
        40,  # all
    ],
    "rows-without-end": ["a", "b", "c"],
    "stop-string": [
        looks_at_each_piece_alone,
        waits_for_the_end,
        holds_as_much_as_the_stop_is_long,
        forgets_what_it_held,
        begins_anew_after_a_wrong_character,
    ],
    "likeliest-answer": [
        not_shifted,
        mean_of_the_tokens,
        without_the_first_token,
        first_token_alone,
    ],
    "draft-and-keep": [
        drawn_anew_from_p,
        nothing_kept,
        kept_by_p,
        no_case_for_equals,
        no_case_for_zeros,
    ],
}
