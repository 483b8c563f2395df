"""The figures of chapter 16 against the package."""

import itertools

import pytest
import torch

from mllama_lite.families.experts import (
    MixtureOfExperts,
    balance_loss,
    expert_load,
)
from mllama_lite.families.llama4 import Llama4, Llama4Config


def known(token, layers, chunk, every):
    """Which of 12 tokens have a gradient, in a random model."""
    config = Llama4Config(
        vocab_size=20,
        hidden_size=32,
        intermediate_size_mlp=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        rope_scaling=None,
        no_rope_layer_interval=every,
        attention_chunk_size=chunk,
        num_local_experts=0,
    )
    torch.manual_seed(0)
    model = Llama4(config)
    with torch.enable_grad():
        rows = torch.randn(1, 12, 32, requires_grad=True)
        model(None, embeddings=rows)[0, token].square().sum().backward()
    return (rows.grad[0].abs().amax(-1) > 0).nonzero()[:, 0].tolist()


def test_chunk_reach(figure):
    shown = figure("chunk_reach")
    for token, layers, chunk, every in itertools.product(
        (0, 6, 11), (1, 2, 4), (1, 4, 5, 12), (0, 2, 4)
    ):
        shown.set("Token", token)
        shown.set("Layers", layers)
        shown.set("Chunk", chunk)
        shown.set("Without positions every", every)
        states = shown.values()
        assert len(states) == layers + 1 and states[-1] == [token]
        want = known(token, layers, chunk, every)
        assert states[0] == want, (token, layers, chunk, every)
        assert f"knows of {len(want)} of the {token + 1} tokens" in shown.words()


def test_chunk_reach_says_what_is_never_known(figure):
    shown = figure("chunk_reach")
    assert "What stands before token 8, where its chunk begins" in shown.words()
    shown.set("Layers", 4)
    assert "One layer that sees everything is enough" in shown.words()
    shown.set("Token", 2)
    assert "first chunk, where nothing is hidden" in shown.words()


@pytest.mark.parametrize("many", [1, 2])
def test_expert_load(figure, many):
    shown = figure("expert_load")
    shown.set("Experts a token, K", many)
    for liked, bias in itertools.product((0, 1.5, 4), (0, -1, -4)):
        shown.set("All like expert 0", liked)
        shown.set("Bias of expert 0", bias)
        values = shown.values()
        logits = torch.tensor(values["logits"])
        moe = MixtureOfExperts(8, 8, 4, many, shared=False)
        moe.choice_bias[0] = bias
        chosen, _ = moe.choose(logits)
        assert values["chosen"] == chosen.tolist()
        assert values["load"] == pytest.approx(expert_load(logits, chosen).tolist())
        loss = balance_loss(logits, chosen).item()
        assert values["loss"] == pytest.approx(loss, rel=1e-5)
        assert f"The balance loss is {loss:.2f}" in shown.words()


def test_the_bias_moves_no_probability(figure):
    shown = figure("expert_load")
    shown.set("All like expert 0", 4)
    assert "Expert 0 has 12 of 12 places" in shown.words()
    before = shown.values()
    shown.set("Bias of expert 0", -4)
    assert shown.values()["logits"] == before["logits"]
    assert max(shown.values()["load"]) < max(before["load"])
    assert "moved choices, and no probability" in shown.words()
