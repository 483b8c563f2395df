"""Chapter 12: bugs of adapters, and what notices them."""

import torch

from bugs import a_bug, a_check, replaced
from mllama_lite.adapters.lora import (
    LoRALinear,
    LowRank,
    adapters_used,
    add_adapter,
    lora_layers,
    merge,
    unmerge,
)
from mllama_lite.decoder import TextConfig
from mllama_lite.model import Mllama, MllamaConfig


@a_bug(
    "merge-without-the-scale",
    "A merge adds B A to the weight and leaves the factor alpha / rank out.",
    "tests/test_lora.py::test_one_layer_merged_differs_by_rounding",
)
def merge_without_the_scale():
    with replaced(LowRank.product, lambda self: self.B @ self.A):
        yield


@a_bug(
    "merged-at-every-save",
    "A merge does not ask whether the adapter is in the weights already: who merges "
    "before every save adds the change again each time.",
    "tests/test_lora.py::test_merging_again_adds_nothing",
)
def merged_at_every_save():
    right = LoRALinear.merge

    def wrong(self):
        self.merged = ()
        right(self)

    with replaced(LoRALinear.merge, wrong):
        yield


@a_bug(
    "alpha-stays-as-the-rank-rises",
    "The default of alpha is a number, 16, and not twice the rank: who raises the rank "
    "alone divides the adapter by it.",
    "tests/test_lora.py::test_alpha_follows_the_rank",
)
def alpha_stays_as_the_rank_rises():
    right, all_text = add_adapter, ("self", "mlp", "cross")

    def wrong(model, targets=all_text, rank=8, alpha=None, *rest, **named):
        return right(model, targets, rank, alpha or 16, *rest, **named)

    with replaced(add_adapter, wrong):
        yield


TEXT = TextConfig(
    vocab_size=64,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=16,
    cross_attention_layers=(),
)
TOKENS = torch.arange(24).view(2, 12) * 7 % 64


def adapted(rank=4):
    """A small model of text with a fresh adapter, and what trains."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Mllama(MllamaConfig(TEXT, None)).requires_grad_(False)
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(std=0.1)
    return model, add_adapter(model, ("self", "mlp"), rank=rank, report=None)


def trained(rank=4):
    """The same after twenty steps, and the losses on the way."""
    model, parameters = adapted(rank)
    optimiser, losses = torch.optim.Adam(parameters, lr=5e-3), []
    for _ in range(20):
        with torch.enable_grad():
            logits = model.language_model(TOKENS)[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), TOKENS[:, 1:].flatten()
            )
            loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    return model, losses


@torch.no_grad()
def logits_of(model):
    return model.language_model(TOKENS)


@a_check("a fresh adapter, and the model without")
def a_fresh_adapter():
    model, _ = adapted()
    fresh = logits_of(model)
    with adapters_used(model):
        assert torch.equal(logits_of(model), fresh)


@a_check("the loss falls in training")
def the_loss_falls():
    _, losses = trained()
    assert losses[-1] < 0.9 * losses[0]


@a_check("right answers of a small task, merged again and beside")
def right_answers():
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 16, generator=generator)
    kinds = torch.arange(200) % 4
    x = centres[kinds] + 0.3 * torch.randn(200, 16, generator=generator)
    layer = LoRALinear(torch.nn.Linear(16, 4, bias=False).requires_grad_(False))
    layer.base.weight.copy_(0.05 * torch.randn(4, 16, generator=generator))
    layer.adapters["one"], layer.active = LowRank(16, 4, 2, alpha=4), ("one",)
    layer.adapters["one"].first_values(generator)
    optimiser = torch.optim.Adam(layer.adapters.parameters(), lr=0.05)
    for _ in range(60):
        with torch.enable_grad():
            torch.nn.functional.cross_entropy(layer(x), kinds).backward()
        optimiser.step()
        optimiser.zero_grad()
    with torch.no_grad():
        beside = (layer(x).argmax(dim=1) == kinds).sum()
        layer.merge()
        layer.merge()
        merged = (layer(x).argmax(dim=1) == kinds).sum()
    assert beside >= 190 and abs(merged - beside) <= 4


@a_check("merged and taken back, every weight to the bit")
def taken_back():
    model, _ = trained()
    layers = lora_layers(model).values()
    before = [layer.weight.clone() for layer in layers]
    merge(model)
    unmerge(model)
    assert all(map(torch.equal, before, (layer.weight for layer in layers)))


def apart(times):
    """How far merged logits are from those beside the weights."""
    model, _ = trained()
    beside = logits_of(model)
    for _ in range(times):
        merge(model)
    return (logits_of(model) - beside).abs().max()


@a_check("logits, merged once and beside")
def merged_once():
    assert apart(times=1) < 1e-3


@a_check("logits, merged twice and beside")
def merged_twice():
    assert apart(times=2) < 1e-3


@a_check("rank 32 learns clearly more than rank 8 in twenty steps")
def more_rank_learns_more():
    _, few = trained(rank=8)
    _, many = trained(rank=32)
    assert many[-1] < 0.7 * few[-1]
