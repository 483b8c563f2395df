"""Wrong answers to chapter 16's exercises."""

import torch

RIGHT = {"active-share": 12.9, "first-wrong-token": "c"}


def second_best(logits, room):
    """A token whose expert is full goes to the next."""
    taken, given = [0] * logits.shape[1], []
    for row in logits:
        given.append(-1)
        for expert in row.argsort(descending=True).tolist():
            if taken[expert] < room:
                taken[expert] += 1
                given[-1] = expert
                break
    return torch.tensor(given)


def without_room(logits, room):
    return logits.argmax(dim=-1)


def room_for_all(logits, room):
    """Counts the places of all experts together."""
    best = logits.argmax(dim=-1)
    best[room * logits.shape[1] :] = -1
    return best


def last_come(logits, room):
    """Keeps the last ones, not the first."""
    best = logits.argmax(dim=-1)
    for expert in range(logits.shape[1]):
        mine = (best == expert).nonzero()[:, 0]
        best[mine[: max(0, len(mine) - room)]] = -1
    return best


def own_chunk(position, layers, chunk, every):
    return position // chunk * chunk if chunk else 0


def one_chunk_a_layer(position, layers, chunk, every):
    """As with a sliding window, where layers add up."""
    return max(0, position - layers * chunk) if chunk else 0


def everything(position, layers, chunk, every):
    return 0


def from_every_layers_on(position, layers, chunk, every):
    """Counts layers from 0: takes the layer after the one without positions."""
    if not chunk or (every and layers > every):
        return 0
    return position // chunk * chunk


WRONG = {
    "active-share": [46.7, 1.6, 13.9, 6.5, 11.3],
    "first-wrong-token": ["a", "b", "d"],
    "below-even": [
        torch.zeros(10, 2),
        torch.eye(2).repeat(5, 1),
        torch.tensor([[5.0, 0]]).repeat(10, 1),
        torch.tensor([[0.1, 0]] * 6 + [[0, 0.1]] * 4),
        torch.zeros(10, 3),
    ],
    "places-for-each": [second_best, without_room, room_for_all, last_come],
    "how-far-back": [own_chunk, one_chunk_a_layer, everything, from_every_layers_on],
}
