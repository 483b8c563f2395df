"""Llama 4's text model against Meta's code and transformers, at sizes of every kind."""

from dataclasses import replace

import pytest
import torch

import reference_llama4
from mllama_lite.attention import KVCache
from mllama_lite.errors import InputError
from mllama_lite.families.llama4 import Llama4, Llama4Config, from_meta

SEEDS = range(24)
INPUTS = "24 random configurations x 3 rows of 30 tokens"


def largest(a, b):
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


@pytest.fixture(scope="module")
def cases():
    found = []
    for seed in SEEDS:
        config = reference_llama4.random_config(seed)
        meta = reference_llama4.meta_model(config, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(config.vocab_size, (3, 30), generator=generator)
        wanted = reference_llama4.meta_logits(meta, tokens)
        ours = reference_llama4.ours_from_meta(meta, config)
        found.append((ours.requires_grad_(False), tokens, wanted))
    return found


def test_the_configurations_are_of_every_kind():
    configs = [reference_llama4.random_config(seed) for seed in SEEDS]
    for name in (
        "no_rope_layer_interval",
        "attention_chunk_size",
        "use_qk_norm",
        "attn_temperature_tuning",
        "num_local_experts",
        "num_experts_per_tok",
        "interleave_moe_layer_step",
    ):
        assert len({getattr(config, name) for config in configs}) >= 2, name


def test_the_whole_model(cases, proof):
    worst = max(largest(ours(tokens), wanted) for ours, tokens, wanted in cases)
    proof("Llama 4: logits", "Meta", INPUTS, worst, 2e-5)


def test_the_cache(cases, proof):
    """A prompt in two pieces, then token by token, over several chunks."""
    worst = 0.0
    for ours, tokens, wanted in cases:
        cache = KVCache(30)
        pieces = [tokens[:, :5], tokens[:, 5:17], *tokens[:, 17:].split(1, dim=1)]
        logits = torch.cat([ours(piece, cache) for piece in pieces], dim=1)
        assert cache.length == 30
        worst = max(worst, largest(logits, wanted))
    proof("Llama 4: logits with the cache", "Meta, whole pass", INPUTS, worst, 2e-5)


def test_rows_of_different_lengths(cases):
    """With positions and a fixed window, as a session has them."""
    for ours, tokens, wanted in cases[:8]:
        cache, starts = KVCache(40), torch.tensor([9, 14, 4])
        cache.window = 40
        positions = torch.arange(15).expand(3, 15)
        ours(tokens[:, :15], cache, positions)
        for step in range(10):
            here = (starts + step)[:, None]
            logits = ours(tokens.gather(1, here), cache, here, torch.zeros(3).long())
            rows = torch.arange(3)
            assert largest(logits[:, 0], wanted[rows, here[:, 0]]) < 2e-5


def test_transformers(cases, proof):
    worst, cached = 0.0, 0.0
    for ours, tokens, _ in cases:
        hub, mine = reference_llama4.hub_model(ours), ours(tokens)
        with torch.no_grad():
            worst = max(worst, largest(hub(tokens).logits, mine))
            first = hub(tokens[:, :17], use_cache=True)
            kept, steps = first.past_key_values, [first.logits]
            for i in range(17, 30):
                found = hub(tokens[:, i : i + 1], past_key_values=kept, use_cache=True)
                steps.append(found.logits)
            cached = max(cached, largest(torch.cat(steps, dim=1), mine))
    proof("Llama 4: logits", "transformers", INPUTS, worst, 2e-5)
    proof("Llama 4: logits", "transformers, cached steps", INPUTS, cached, 2e-5)


def test_embeddings_in_the_place_of_tokens(cases):
    ours, tokens, wanted = cases[0]
    rows = ours.model.embed_tokens(tokens)
    assert largest(ours(None, embeddings=rows), wanted) < 2e-5


def test_metas_names_of_the_published_models():
    """On the meta device: every name of Meta's model has a place, and the shapes fit."""
    for seed in SEEDS:
        config = reference_llama4.random_config(seed)
        meta = reference_llama4.meta_model(config, seed=seed)
        state = from_meta(meta.state_dict())
        mine = {
            name: tensor.shape
            for name, tensor in Llama4(config).state_dict().items()
            if not name.endswith("choice_bias")
        }
        assert {name: tensor.shape for name, tensor in state.items()} == mine


def test_what_belongs_to_the_vision_encoder_is_left_out():
    config = reference_llama4.random_config(0)
    state = reference_llama4.meta_model(config).state_dict()
    both = from_meta(state | {"vision_projection.weight": torch.zeros(2, 2)})
    assert both.keys() == from_meta(state).keys()


@pytest.mark.parametrize(
    "name", ["layers.0.attention.wz.weight", "tok_embedding.weight", "layers.3"]
)
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match=f"{name} is no tensor of Llama 4's"):
        from_meta({name: torch.zeros(2, 2)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "40 query heads for 3 key heads"),
        ({"num_experts_per_tok": 0}, "sends a token to 0 of 16 experts"),
        ({"num_experts_per_tok": 17}, "sends a token to 17 of 16 experts"),
    ],
)
def test_configurations_that_cannot_be(change, message):
    with pytest.raises(InputError, match=message):
        replace(Llama4Config(), **change)


def test_a_tied_head_is_the_embedding():
    config = replace(reference_llama4.random_config(0), tie_word_embeddings=True)
    model = Llama4(config)
    assert model.lm_head.weight is model.model.embed_tokens.weight
