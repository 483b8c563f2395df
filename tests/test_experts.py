"""Mixtures of experts: against a loop, Meta's layer, transformers' Mixtral; and in balance."""

import pytest
import torch
import torch.nn.functional as F

import reference
from mllama_lite.families.experts import (
    MixtureOfExperts,
    balance_by_bias,
    balance_loss,
    expert_load,
)
from mllama_lite.pretraining.training import unevenness


@pytest.fixture(autouse=True)
def with_gradients():
    with torch.enable_grad():
        yield


KINDS = [(True, 1), (True, 2), (False, 1), (False, 2), (False, 3)]


def by_loops(moe, x):
    """A token and an expert at a time, nothing gathered."""
    rows = []
    for token in x.flatten(0, -2):
        chosen, weights = moe.choose(moe.router(token)[None])
        row = torch.zeros_like(token)
        if moe.shared_expert is not None:
            row = moe.shared_expert(token)
        for expert, weight in zip(chosen[0], weights[0]):
            first = token * weight if moe.shared_expert is not None else token
            gate, up = (first @ moe.experts.gate_up_proj[expert]).chunk(2)
            made = (F.silu(gate) * up) @ moe.experts.down_proj[expert]
            row = row + (made if moe.shared_expert is not None else made * weight)
        rows.append(row)
    return torch.stack(rows).view_as(x)


@pytest.mark.parametrize(("shared", "chosen"), KINDS)
def test_values_and_gradients_are_those_of_a_loop(shared, chosen):
    torch.manual_seed(chosen)
    moe = MixtureOfExperts(16, 20, 6, chosen, shared).double()
    for rows in (1, 2, 33):
        found = []
        x = torch.randn(2, rows, 16, dtype=torch.float64, requires_grad=True)
        for way in (moe, lambda x: by_loops(moe, x)):
            moe.zero_grad()
            x.grad = None
            y = way(x)
            (y * torch.arange(16)).sum().backward()
            grads = [p.grad.clone() for p in moe.parameters() if p.grad is not None]
            found.append([y.detach(), x.grad.clone(), *grads])
        for mine, theirs in zip(*found, strict=True):
            # Weights are computed in fp32 whatever the dtype.
            assert (mine - theirs).abs().max() < 1e-5 * theirs.abs().max().clamp(min=1)


def test_the_router_learns_through_the_factor():
    moe = MixtureOfExperts(16, 20, 6, 1, shared=True)
    moe(torch.randn(30, 16)).sum().backward()
    assert moe.router.weight.grad.abs().max() > 0


def test_experts_without_tokens_get_no_gradient_and_no_harm():
    moe = MixtureOfExperts(16, 20, 6, 1, shared=True)
    moe(torch.randn(1, 16)).sum().backward()
    used = moe.experts.down_proj.grad.abs().amax((1, 2)) > 0
    assert used.sum() == 1


@pytest.mark.witness
@pytest.mark.parametrize("chosen", [1, 2])
def test_metas_layer(chosen, proof):
    reference.start_meta()
    from llama_models.llama4.args import MoEArgs
    from llama_models.llama4.moe import MoE

    args = MoEArgs(num_experts=8, top_k=chosen, auto_scale_F=False)
    meta = MoE(32, 72, 1.0, 1, args)
    generator = torch.Generator().manual_seed(chosen)
    with torch.no_grad():
        for parameter in meta.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.2 * noise)
        moe = MixtureOfExperts(32, 48, 8, chosen, shared=True)
        moe.router.weight.copy_(meta.router_DE.T)
        w1, w2, w3 = meta.experts.w1, meta.experts.w2, meta.experts.w3
        moe.experts.gate_up_proj.copy_(torch.cat([w1, w3], dim=-1))
        moe.experts.down_proj.copy_(w2)
        for mine, theirs in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
            weight = getattr(meta.shared_expert, theirs).weight
            getattr(moe.shared_expert, f"{mine}_proj").weight.copy_(weight)
        x = torch.randn(3, 40, 32, generator=generator)
        worst = (moe(x) - meta(x)).abs().max().item()
    part = f"Experts, K = {chosen} and one shared"
    proof(part, "Meta's Llama 4", "3 rows of 40 tokens", worst, 1e-5)


@pytest.mark.witness
def test_mixtrals_block_and_its_loss(proof):
    reference.import_torchvision()
    from transformers import MixtralConfig
    from transformers.models.mixtral import modeling_mixtral as mixtral

    size = dict(hidden_size=32, intermediate_size=48, num_local_experts=8)
    config = MixtralConfig(**size, num_experts_per_tok=2)
    config._experts_implementation = "eager"
    block = reference.fill(mixtral.MixtralSparseMoeBlock(config), 3).eval()
    moe, state = MixtureOfExperts(32, 48, 8, 2, shared=False), block.state_dict()
    with torch.no_grad():
        moe.router.weight.copy_(state["gate.weight"])
        gate_up = state["experts.gate_up_proj"].transpose(1, 2)
        moe.experts.gate_up_proj.copy_(gate_up)
        moe.experts.down_proj.copy_(state["experts.down_proj"].transpose(1, 2))
        x = torch.randn(3, 40, 32, generator=torch.Generator().manual_seed(0))
        theirs = block(x)
        theirs = theirs[0] if isinstance(theirs, tuple) else theirs
        worst = (moe(x) - theirs).abs().max().item()
        logits = moe.router(x.flatten(0, 1))
        mine = balance_loss(logits, moe.choose(logits)[0])
        loss = mixtral.load_balancing_loss_func((logits,), 8, 2)
    inputs = "3 rows of 40 tokens"
    proof("Experts, K = 2", "Mixtral in transformers", inputs, worst, 2e-5)
    off = (mine - loss).abs().item()
    proof("Balance loss", "Mixtral in transformers", inputs, off, 1e-5)


def test_the_load_is_one_where_all_are_used_alike():
    even = torch.eye(4).repeat(3, 1)
    assert expert_load(even, even.topk(1).indices).tolist() == [1, 1, 1, 1]
    assert balance_loss(even, even.topk(1).indices).item() == pytest.approx(1)
    sure = torch.tensor([[30.0, 0, 0, 0]]).repeat(12, 1)
    assert expert_load(sure, sure.topk(1).indices).tolist() == [4, 0, 0, 0]
    assert balance_loss(sure, sure.topk(1).indices).item() == pytest.approx(4)


def test_the_loss_moves_a_router_towards_balance():
    torch.manual_seed(0)
    moe, x = MixtureOfExperts(16, 8, 4, 1, shared=False), torch.randn(400, 16) + 1
    optimiser, before = torch.optim.SGD([moe.router.weight], 0.3), None
    for _ in range(200):
        logits = moe.router(x)
        chosen = moe.choose(logits)[0]
        before = before or expert_load(logits, chosen).max().item()
        optimiser.zero_grad()
        balance_loss(logits, chosen).backward()
        optimiser.step()
    after = expert_load(logits, chosen).max().item()
    assert after < 1.3 < before


def test_the_bias_moves_choices_and_no_weight():
    torch.manual_seed(0)
    moe, x = MixtureOfExperts(16, 8, 4, 1, shared=False), torch.randn(400, 16) + 1
    logits = moe.router(x).detach()
    loads = []
    for _ in range(300):
        chosen, weights = moe.choose(logits)
        loads.append(expert_load(logits, chosen).max().item())
        picked = logits.gather(-1, chosen)
        assert torch.equal(weights, picked.softmax(-1))
        balance_by_bias(moe, logits, chosen, 0.01)
    assert loads[-1] < 1.2 < loads[0]


def test_layers_are_balanced_one_by_one():
    first = torch.tensor([[5.0, 0]]).repeat(10, 1)
    layers = {"a": first, "b": first.flip(-1)}
    seen = {name: (x, x.topk(1).indices) for name, x in layers.items()}
    assert unevenness(seen).item() > 1.9
