"""Checks of chapter 7's exercises."""

import copy

import torch

from exercises import exercise, expect
from mllama_lite.global_vision import GatedVisionLayer
from mllama_lite.local_vision import VisionConfig, VisionLayer


@exercise("which-channel")
def which_channel(answer):
    config = VisionConfig()
    width, count = config.hidden_size, len(config.intermediate_layers_indices)
    channels = torch.arange(width)
    # Each number of a token's features says which channel of its state it is.
    kept = torch.stack([channels] * count, dim=-1).flatten(-2)
    found = torch.cat([channels, kept])[4567].item()
    expect(answer != 4567 - width, "whose channels alternate behind the final state?")
    expect(answer != 4567 % width, "do the kept states follow one another as blocks?")
    expect(answer != 4567 // count, "which channels come before the kept states?")
    expect(answer == found, "what stands in the first 1,280 channels, and what behind?")


SMALL = VisionConfig(hidden_size=16, attention_heads=2, intermediate_size=32)


def _layer(gates):
    """A gated layer with PyTorch's first values, and biases that are not 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = GatedVisionLayer(SMALL)
    layer.gate_attn.data.fill_(gates)
    layer.gate_ffn.data.fill_(gates)
    return layer


def _starts():
    """The four layers of the exercise, by letter."""
    layers = {letter: _layer(0.2 if letter == "c" else 0.0) for letter in "abcd"}
    for letter in "bc":
        own = layers[letter]
        for part in (own.self_attn.o_proj, own.mlp.fc2):
            for parameter in part.parameters():
                parameter.data.zero_()
    for norm in (layers["d"].input_layernorm, layers["d"].post_attention_layernorm):
        norm.weight.data.zero_()
    return layers


def _moves(layer):
    """Whether gradient descent moves anything in a layer."""
    generator = torch.Generator().manual_seed(1)
    x, target = torch.randn(2, 2, 10, 16, generator=generator)
    with torch.enable_grad():
        loss = (layer(x, 7) - target).square().mean()
        slopes = torch.autograd.grad(loss, list(layer.parameters()))
    return any(slope.any() for slope in slopes)


@exercise("never-wakes")
def never_wakes(answer):
    asleep = [letter for letter, layer in _starts().items() if not _moves(layer)]
    expect([answer] == asleep, "in this one something has a gradient: what?")


@exercise("projector-for-blocks")
def projector_for_blocks(regroup):
    generator = torch.Generator().manual_seed(0)
    for width, count in ((4, 5), (6, 2), (5, 3)):
        final, *states = torch.randn(count + 1, 7, width, generator=generator)
        weight = torch.randn(9, width * (count + 1), generator=generator)
        apart = torch.cat([final, torch.stack(states, dim=-1).flatten(-2)], dim=-1)
        got = regroup(weight.clone(), width)
        shape = list(getattr(got, "shape", []))
        expect(
            shape == list(weight.shape),
            f"for a weight of {list(weight.shape)} it returns {shape}",
        )
        blocks = torch.cat([final, *states], dim=-1)
        first = (blocks[:, :width] @ got[:, :width].T).sub(final @ weight[:, :width].T)
        expect(first.abs().max() < 1e-3, "the final state meets other weights")
        off = (blocks @ got.T - apart @ weight.T).abs().max().item()
        expect(off < 1e-3, f"with {count} kept states of {width} it is {off:.1f} off")


@exercise("folded-gates")
def folded_gates(fold):
    generator = torch.Generator().manual_seed(0)
    for gates in ((0.3, -1.2), (2.0, 0.0)):
        layer = _layer(0.0)
        for gate, value in zip((layer.gate_attn, layer.gate_ffn), gates):
            gate.data.fill_(value)
        before = copy.deepcopy(layer)
        plain = fold(layer, SMALL)
        name = type(plain).__name__
        expect(isinstance(plain, VisionLayer), f"it returns a {name}: no layer")
        gated = any("gate" in key for key, _ in plain.named_parameters())
        expect(not gated, "what it returns still has gates")
        unchanged = all(map(torch.equal, layer.parameters(), before.parameters()))
        expect(unchanged, "the gated layer that it was given has changed")
        x = torch.randn(2, 10, 16, generator=generator)
        with torch.no_grad():
            off = (plain(x, 7) - before(x, 7)).abs().max().item()
        expect(off < 1e-5, f"with gates {gates} the plain layer is {off:.1e} off")


@exercise("share-of-each-state")
def share_of_each_state(shares):
    generator = torch.Generator().manual_seed(0)
    for width, count in ((4, 5), (6, 2)):
        weight = 1 + torch.randn(9, width * (count + 1), generator=generator)
        # States of different sizes, each with a mean, and akin to one another.
        size = torch.arange(1, count + 2)[:, None, None]
        common = torch.randn(200, width, generator=generator)
        parts = size * torch.randn(count + 1, 200, width, generator=generator)
        parts = parts + 2 * common + size
        final, *states = parts
        features = torch.cat([final, torch.stack(states, dim=-1).flatten(-2)], dim=-1)
        got = shares(features, weight, width)
        got = got.tolist() if torch.is_tensor(got) else list(got)
        expect(len(got) == count + 1, f"for {count + 1} states it returns {len(got)}")
        expect(abs(sum(got) - 1) < 1e-4, f"the shares add up to {sum(got):.2f}")
        moved = features.clone()
        moved[:, width::count] += 10
        again = shares(moved, weight, width)
        same = all(abs(a - b) < 1e-3 for a, b in zip(got, again))
        expect(same, "a state counts for more when the same is added to all tokens")
        # What each part adds, by leaving all others out of the features.
        total = features @ weight.T
        spread = (total - total.mean(dim=0)).square().sum()
        for j in range(count + 1):
            chosen = slice(0, width) if j == 0 else slice(width + j - 1, None, count)
            only = torch.zeros_like(features)
            only[:, chosen] = features[:, chosen]
            only = only @ weight.T
            both = (only - only.mean(dim=0)) * (total - total.mean(dim=0))
            off = abs(got[j] - (both.sum() / spread).item())
            expect(off < 1e-3, f"the share of state {j} is {off:.2f} off")
