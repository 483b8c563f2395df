"""Wrong answers to chapter 8's exercises."""

import copy

import torch

from mllama_lite.cross_attention import visible_ranges

RIGHT = {"break-even-answer": 1770, "keys-kept": "d"}


def nothing_ends(tokens, image_id):
    ranges = []
    for i, token in enumerate(tokens):
        if token == image_id:
            ranges.append((i, None))
        yield list(ranges)


def groups_forgotten(tokens, image_id):
    ranges = []
    for i, token in enumerate(tokens):
        if token == image_id:
            if ranges:
                ranges[-1] = (ranges[-1][0], i)
            ranges.append((i, None))
        yield list(ranges)


def the_last_of_a_group_ends_alone(tokens, image_id):
    ranges, before = [], False
    for i, token in enumerate(tokens):
        if token == image_id:
            if ranges and not before:
                ranges[-1] = (ranges[-1][0], i)
            ranges.append((i, None))
        before = token == image_id
        yield list(ranges)


def the_whole_text_first(tokens, image_id):
    tokens = list(tokens)
    for i in range(len(tokens)):
        yield visible_ranges(tokens[: i + 1], image_id)


def from_the_beginning_every_time(tokens, image_id):
    seen = []
    for token in tokens:
        seen.append(token)
        yield visible_ranges(seen, image_id)


def scores_of(query, key):
    return query @ key.T * query.shape[1] ** -0.5


def minus_infinity(query, key, value, sees):
    scores = scores_of(query, key).masked_fill(~sees, -torch.inf)
    return scores.softmax(dim=1) @ value


def most_negative_number(query, key, value, sees):
    least = torch.finfo(query.dtype).min
    return scores_of(query, key).masked_fill(~sees, least).softmax(dim=1) @ value


def zeroed_at_the_end(query, key, value, sees):  # 0 times nan, on the way back
    output = minus_infinity(query, key, value, sees)
    return torch.where(sees.any(dim=1, keepdim=True), output, 0.0)


def infinity_added(query, key, value, sees):  # finite, but not its gradient
    mask = torch.zeros(sees.shape).masked_fill(~sees, -torch.inf)
    return (scores_of(query, key) + mask).softmax(dim=1).nan_to_num() @ value


def largest_not_taken_off(query, key, value, sees):
    weights = scores_of(query, key).exp() * sees
    return weights / weights.sum(dim=1, keepdim=True).clamp(1e-30) @ value


@torch.no_grad()
def folded(layer, norm=True, gate=torch.tanh, down=True):
    layer = copy.deepcopy(layer)
    attention = layer.cross_attn
    if norm:
        attention.k_norm.weight *= attention.q_norm.weight
    attention.q_norm.weight.fill_(1)
    attention.o_proj.weight *= gate(layer.cross_attn_attn_gate)
    last = layer.mlp.down_proj if down else layer.mlp.gate_proj
    last.weight *= gate(layer.cross_attn_mlp_gate)
    layer.cross_attn_attn_gate.fill_(20)
    layer.cross_attn_mlp_gate.fill_(20)
    return layer


def norms_weight_left_out(layer):
    return folded(layer, norm=False)


def without_tanh(layer):
    return folded(layer, gate=lambda gate: gate)


def through_the_nonlinearity(layer):
    return folded(layer, down=False)


@torch.no_grad()
def in_place(layer):
    layer.load_state_dict(folded(layer).state_dict())
    return layer


WRONG = {
    "break-even-answer": [
        118_000,  # against 6,404 tokens in the text
        1643,  # the look of the answer's tokens at the text's vision tokens left out
        2107,  # the crossed image is free
        0,
    ],
    "keys-kept": ["a", "b", "c", "e"],
    "one-pass": [
        nothing_ends,
        groups_forgotten,
        the_last_of_a_group_ends_alone,
        the_whole_text_first,
        from_the_beginning_every_time,
    ],
    "nothing-to-see": [
        minus_infinity,
        most_negative_number,
        zeroed_at_the_end,
        infinity_added,
        largest_not_taken_off,
    ],
    "folded-layer": [
        norms_weight_left_out,
        without_tanh,
        through_the_nonlinearity,
        in_place,
    ],
    "four-heads": [
        [(1, 0), (1, 1), (1, 2), (1, 3)],  # the first layer that looks
        [(5, 0), (5, 1), (5, 2), (5, 3)],  # the last
        [(3, 1), (3, 3), (5, 2), (5, 3)],  # those that cost most when closed alone
        [(layer, head) for layer in (1, 3, 5) for head in range(4)],
        [(0, 2), (0, 3), (1, 2), (1, 3)],  # layers counted among themselves
    ],
}
