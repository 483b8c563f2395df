"""Wrong answers to chapter 3's exercises."""

import torch

LAYERS, HEADS, SIZE = 80, 8, 128
RIGHT = {"cache-bytes": 2 * LAYERS * HEADS * SIZE * 2}


def softmax(scores):
    return scores.softmax(dim=-1)


def no_mask(x, w_q, w_k, w_v, w_o):
    query, key, value = x @ w_q.T, x @ w_k.T, x @ w_v.T
    scores = query @ key.transpose(1, 2) / key.shape[-1] ** 0.5
    return softmax(scores) @ value @ w_o.T


def masked(x, w_q, w_k, scale):
    scores = (x @ w_q.T) @ (x @ w_k.T).transpose(1, 2) * scale
    seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
    return softmax(scores.masked_fill(~seen, -1e30))


def no_scale(x, w_q, w_k, w_v, w_o):
    return masked(x, w_q, w_k, 1.0) @ (x @ w_v.T) @ w_o.T


def scaled_by_the_width(x, w_q, w_k, w_v, w_o):
    return masked(x, w_q, w_k, x.shape[-1] ** -0.5) @ (x @ w_v.T) @ w_o.T


def no_output_projection(x, w_q, w_k, w_v, w_o):
    return masked(x, w_q, w_k, w_k.shape[0] ** -0.5) @ (x @ w_v.T)


def all_at_once(query, key, value, block):
    return softmax(query @ key.T * query.shape[1] ** -0.5) @ value


def mean_of_blocks(query, key, value, block):
    pieces = zip(key.split(block), value.split(block))
    return torch.stack([all_at_once(query, k, v, block) for k, v in pieces]).mean(dim=0)


def no_largest_taken_off(query, key, value, block):
    top, total = 0, 0
    for k, v in zip(key.split(block), value.split(block)):
        weights = (query @ k.T * query.shape[1] ** -0.5).exp()
        top, total = top + weights @ v, total + weights.sum(dim=1, keepdim=True)
    return top / total


def one_hot(places):
    return 20.0 * torch.nn.functional.one_hot(torch.tensor(places), 8)


WRONG = {
    "cache-bytes": [
        LAYERS * HEADS * SIZE * 2,  # keys alone
        2 * 100 * HEADS * SIZE * 2,  # all layers
        2 * LAYERS * 64 * SIZE * 2,  # of every query head
        2 * LAYERS * HEADS * SIZE * 4,  # in fp32
    ],
    "previous-token": [
        (one_hot(range(6)), one_hot(range(6))),  # looks at itself
        (one_hot([1, 2, 3, 4, 5, 6]), one_hot(range(6))),  # at the next
        (one_hot([0, 0, 1, 2, 3, 4]) / 20, one_hot(range(6)) / 20),  # unsure
        (torch.zeros(6, 4), torch.zeros(6, 4)),
    ],
    "one-head": [no_mask, no_scale, scaled_by_the_width, no_output_projection],
    "blockwise": [all_at_once, mean_of_blocks, no_largest_taken_off],
}
