"""Wrong answers to chapter 7's exercises."""

import copy

import torch

from mllama_lite.local_vision import VisionLayer

RIGHT = {"which-channel": (4567 - 1280) // 5, "never-wakes": "b"}


def unchanged(weight, width):
    return weight


def places(weight, width):
    """Of the interleaved channels, in the order of the blocks."""
    count = weight.shape[1] // width - 1
    return torch.arange(count * width).view(width, count)


def the_inverse(weight, width):
    order = width + places(weight, width).T.flatten().argsort()
    return torch.cat([weight[:, :width], weight[:, order]], dim=1)


def final_state_too(weight, width):
    count = weight.shape[1] // width
    order = torch.arange(count * width).view(width, count).T.flatten()
    return weight[:, order]


def final_state_last(weight, width):
    order = width + places(weight, width).T.flatten()
    return torch.cat([weight[:, order], weight[:, :width]], dim=1)


def rows_instead_of_columns(weight, width):
    return weight.T


def folded(layer, config, scale=torch.tanh, biases=True, inputs=False):
    plain = VisionLayer(config)
    stored = copy.deepcopy(layer.state_dict())
    gates = {name: scale(stored.pop(name)) for name in ("gate_attn", "gate_ffn")}
    plain.load_state_dict(stored)
    with torch.no_grad():
        part = plain.self_attn.v_proj if inputs else plain.self_attn.o_proj
        part.weight *= gates["gate_attn"]
        last = plain.mlp.fc1 if inputs else plain.mlp.fc2
        last.weight *= gates["gate_ffn"]
        if biases:
            last.bias *= gates["gate_ffn"]
    return plain


def bias_left_out(layer, config):
    return folded(layer, config, biases=False)


def without_tanh(layer, config):
    return folded(layer, config, scale=lambda gate: gate)


def into_the_first_map(layer, config):
    return folded(layer, config, inputs=True)


def in_place(layer, config):
    with torch.no_grad():
        layer.self_attn.o_proj.weight *= layer.gate_attn.tanh()
        for parameter in layer.mlp.fc2.parameters():
            parameter *= layer.gate_ffn.tanh()
    plain = VisionLayer(config)
    own = plain.state_dict()
    plain.load_state_dict({name: layer.state_dict()[name] for name in own})
    return plain


def still_gated(layer, config):
    return copy.deepcopy(layer)


def gates_of_1(layer, config):
    plain = copy.deepcopy(layer)
    plain.gate_attn.data.fill_(1)
    plain.gate_ffn.data.fill_(1)
    return plain


def parts(features, weight, width, blocks=False):
    count = features.shape[1] // width - 1
    for j in range(count + 1):
        channels = slice(0, width)
        if j and blocks:
            channels = slice(j * width, (j + 1) * width)
        elif j:
            channels = slice(width + j - 1, None, count)
        yield features[:, channels] @ weight[:, channels].T


def centred(x):
    return x - x.mean(dim=0)


def norms(features, weight, width):
    sizes = [part.norm() for part in parts(features, weight, width)]
    return torch.stack(sizes) / sum(sizes)


def variances(features, weight, width):
    sizes = [centred(p).square().sum() for p in parts(features, weight, width)]
    return torch.stack(sizes) / sum(sizes)


def variances_of_the_total(features, weight, width):
    sizes = [centred(p).square().sum() for p in parts(features, weight, width)]
    return torch.stack(sizes) / centred(features @ weight.T).square().sum()


def means_left_in(features, weight, width):
    total = features @ weight.T
    sizes = [(part * total).sum() for part in parts(features, weight, width)]
    return torch.stack(sizes) / total.square().sum()


def as_blocks(features, weight, width):
    total = centred(features @ weight.T)
    pieces = parts(features, weight, width, blocks=True)
    return torch.stack([(centred(p) * total).sum() for p in pieces]) / (total**2).sum()


WRONG = {
    "which-channel": [
        4567 - 1280,  # the place behind the final state
        4567 % 1280,  # as five blocks
        4567 // 5,  # the final state forgotten
        (4567 - 1280) % 5,  # which state, not which channel
        4567 // 6,  # six states interleaved
    ],
    "never-wakes": ["a", "c", "d"],
    "projector-for-blocks": [
        unchanged,
        the_inverse,
        final_state_too,
        final_state_last,
        rows_instead_of_columns,
    ],
    "folded-gates": [
        bias_left_out,
        without_tanh,
        into_the_first_map,
        in_place,
        still_gated,
        gates_of_1,
    ],
    "share-of-each-state": [
        norms,
        variances,
        variances_of_the_total,
        means_left_in,
        as_blocks,
    ],
}
