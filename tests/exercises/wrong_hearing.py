"""Wrong answers to chapter 18's exercises."""

import torch

RIGHT = {"vectors-of-a-sound": 88, "empty-bands": 17}


def quiet_of_all(power):
    """The loudest of all sounds together."""
    log = power.clamp(min=1e-10).log10()
    return (log.maximum(log.max() - 8) + 4) / 4


def quiet_of_each_frame(power):
    log = power.clamp(min=1e-10).log10()
    return (log.maximum(log.amax(-2, keepdim=True) - 8) + 4) / 4


def without_floor(power):
    log = power.log10()
    return (log.maximum(log.amax((-2, -1), keepdim=True) - 8) + 4) / 4


def natural(power):
    log = power.clamp(min=1e-10).log()
    return (log.maximum(log.amax((-2, -1), keepdim=True) - 8) + 4) / 4


def no_scale(power):
    log = power.clamp(min=1e-10).log10()
    return log.maximum(log.amax((-2, -1), keepdim=True) - 8)


def apart(states, count):
    """Every vector from all over the sound."""
    states = torch.nn.functional.pad(states, (0, 0, 0, -states.shape[1] % count))
    return states.unflatten(1, (count, -1)).transpose(1, 2).flatten(2)


def drops_the_rest(states, count):
    whole = states.shape[1] // count * count
    return states[:, :whole].unflatten(1, (-1, count)).flatten(2)


def mixed(states, count):
    """First numbers of all frames, then second ones."""
    states = torch.nn.functional.pad(states, (0, 0, 0, -states.shape[1] % count))
    return states.unflatten(1, (-1, count)).transpose(2, 3).flatten(2)


def padded_before(states, count):
    states = torch.nn.functional.pad(states, (0, 0, -states.shape[1] % count, 0))
    return states.unflatten(1, (-1, count)).flatten(2)


def every_layer(vectors, tokens, layers, crosses, groups, head_dim):
    """As if all layers kept the tokens, and the crosses the sound as well."""
    one = 2 * groups * head_dim
    return one * layers * (vectors + tokens - 1), one * (
        layers * tokens + crosses * vectors
    )


def mark_beside(vectors, tokens, layers, crosses, groups, head_dim):
    """Counts the sound's token and its vectors."""
    one = 2 * groups * head_dim
    return (
        one * layers * (vectors + tokens),
        one * ((layers - crosses) * tokens + crosses * vectors),
    )


def keys_alone(vectors, tokens, layers, crosses, groups, head_dim):
    one = groups * head_dim
    return (
        one * layers * (vectors + tokens - 1),
        one * ((layers - crosses) * tokens + crosses * vectors),
    )


WRONG = {
    "vectors-of-a-sound": [87, 175, 350, 700, 87.5],
    "empty-bands": [40, 0, 23, 80],
    "quiet-of-each": [
        quiet_of_all,
        quiet_of_each_frame,
        without_floor,
        natural,
        no_scale,
    ],
    "frames-side-by-side": [apart, drops_the_rest, mixed, padded_before],
    "what-is-kept": [every_layer, mark_beside, keys_alone],
}
