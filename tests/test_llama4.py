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


def test_names_of_metas_modules():
    for seed in SEEDS:
        config = reference_llama4.random_config(seed)
        meta = reference_llama4.meta_model(config, seed=seed)
        state = from_meta(meta.state_dict(), config)
        mine = {
            name: tensor.shape
            for name, tensor in Llama4(config).state_dict().items()
            if not name.endswith("choice_bias")
        }
        assert {name: tensor.shape for name, tensor in state.items()} == mine


def as_published(state, config):
    """A state with the names and forms that Meta's load hooks expect of a checkpoint."""
    found, size = {"rope.freqs": torch.zeros(2)}, config.hidden_size
    for name, tensor in state.items():
        layer, _, end = name.rpartition(".attention.")
        if end in ("wk.weight", "wv.weight"):
            continue
        inner, _, last = name.rpartition(".feed_forward.")
        if end == "wq.weight":
            parts = [state[f"{layer}.attention.w{x}.weight"] for x in "qkv"]
            found[f"{layer}.attention.wqkv.weight"] = torch.cat(parts)
            found[f"{layer}.attention.wqkv._extra_state"] = torch.zeros(1)
        elif name.endswith(".attention_norm.weight"):
            first = name.removesuffix("attention_norm.weight")
            found[f"{first}attention.wqkv.layer_norm_weight"] = tensor
        elif name.endswith(".ffn_norm.weight"):
            first = name.removesuffix("ffn_norm.weight")
            dense = f"{first}feed_forward.w1.weight" in state
            kind = "mlp.layer_norm_weight" if dense else "norm.weight"
            found[f"{first}feed_forward.{kind}"] = tensor
        elif last == "w1.weight":
            up = state[f"{inner}.feed_forward.w3.weight"]
            found[f"{inner}.feed_forward.mlp.fc1_weight"] = torch.cat([tensor, up])
        elif last == "w2.weight":
            found[f"{inner}.feed_forward.mlp.fc2_weight"] = tensor
        elif last == "w3.weight":
            continue
        elif last.startswith("experts."):
            stored = {"w1": "in_eD", "w3": "swiglu_eD", "w2": "out_eF"}[last[-2:]]
            width = "D" if last.endswith("w2") else "F"
            flat = tensor.reshape(-1, size if width == "D" else tensor.shape[-1])
            found[f"{inner}.feed_forward.experts.moe_w_{stored}_{width}"] = flat
        elif last.startswith("shared_expert."):
            kinds = {"w1": "in_shared_FD", "w3": "swiglu_FD", "w2": "out_shared_DF"}
            kind = kinds[last.split(".")[1]]
            found[f"{inner}.feed_forward.w_{kind}.weight"] = tensor
        else:
            found[name] = tensor
    return found


def test_names_of_metas_checkpoints():
    """Meta's own hooks read the same state, and both models give the same logits."""
    for seed in (0, 2, 5, 8):
        config = reference_llama4.random_config(seed)
        plain = reference_llama4.meta_model(config, seed=seed).state_dict()
        published = as_published(plain, config)
        assert not {n for n in published if ".wq." in n or "experts.w1" in n}
        meta = reference_llama4.meta_model(config, seed=99)
        meta.load_state_dict(dict(published))
        ours = Llama4(config)
        ours.load_state_dict(from_meta(published, config), strict=False)
        tokens = torch.arange(24).view(2, 12)
        wanted = reference_llama4.meta_logits(meta, tokens)
        with torch.no_grad():
            assert largest(ours(tokens), wanted) < 2e-5


def test_what_belongs_to_the_vision_encoder_is_left_out():
    config = reference_llama4.random_config(0)
    state = reference_llama4.meta_model(config).state_dict()
    more = state | {"vision_projection.weight": torch.zeros(2, 2)}
    assert from_meta(more, config).keys() == from_meta(state, config).keys()


@pytest.mark.parametrize(
    "name", ["layers.0.attention.wz.weight", "tok_embedding.weight", "layers.3"]
)
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match=f"{name} is no tensor of Llama 4's"):
        from_meta({name: torch.zeros(2, 2)}, Llama4Config())


def test_half_of_an_experts_matrices_is_refused():
    name = "layers.0.feed_forward.experts.w1"
    with pytest.raises(InputError, match="experts.w1 is there and .*w3 is not"):
        from_meta({name: torch.zeros(2, 3, 4)}, Llama4Config())


def test_scouts_stretching_of_frequencies_is_metas():
    reference_llama4.reference.start_meta()
    from llama_models.llama4.model import apply_scaling

    from mllama_lite.rope import rope_frequencies

    plain = rope_frequencies(128, 500000.0)
    ours = rope_frequencies(128, 500000.0, Llama4Config().rope_scaling)
    assert torch.equal(ours, apply_scaling(plain, 16, 1))
    assert not torch.equal(ours, plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 3}, "40 query heads for 3 key heads"),
        ({"num_experts_per_tok": 0}, "sends a token to 0 of 16 experts"),
        ({"num_experts_per_tok": 17}, "sends a token to 17 of 16 experts"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0: expected a whole"),
        ({"interleave_moe_layer_step": 0}, "interleave_moe_layer_step is 0"),
        ({"hidden_size": 19.5}, "hidden_size is 19.5: expected a whole number, 1"),
        ({"attention_chunk_size": -1}, "attention_chunk_size is -1"),
        ({"head_dim": 15}, "has head_dim 15"),
        ({"floor_scale": 0.0}, "floor_scale 0.0"),
    ],
)
def test_configurations_that_cannot_be(change, message):
    with pytest.raises(InputError, match=message):
        replace(Llama4Config(), **change)


def test_a_tied_head_is_the_embedding():
    config = replace(reference_llama4.random_config(0), tie_word_embeddings=True)
    model = Llama4(config)
    assert model.lm_head.weight is model.model.embed_tokens.weight
