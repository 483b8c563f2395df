"""Meta's Llama 4 and transformers', small and random, as witnesses for chapter 16.

Their code runs on a CPU with two repairs, both from outside: Meta's attention puts its caches on
a GPU while it is built, and its vision encoder, which is left out here, would be forced to bf16.
"""

import contextlib
import random
from dataclasses import asdict

import torch

import reference
from mllama_lite.families.llama4 import Llama4, Llama4Config, from_meta


@contextlib.contextmanager
def _caches_stay():
    """Within this block a tensor's .cuda() gives the tensor itself."""
    kept = torch.Tensor.cuda
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    try:
        yield
    finally:
        torch.Tensor.cuda = kept


def random_config(seed):
    """A small configuration: experts, chunks, norms, temperature, depths all vary."""
    rng = random.Random(seed)
    heads = rng.choice([2, 4, 6])
    groups = rng.choice([n for n in (1, 2, 3) if heads % n == 0])
    head_dim, experts = rng.choice([8, 16]), rng.choice([2, 4, 8])
    return Llama4Config(
        vocab_size=rng.randint(90, 300),
        hidden_size=heads * head_dim,
        intermediate_size=meta_width(heads * head_dim),
        intermediate_size_mlp=meta_width(heads * head_dim),
        num_hidden_layers=rng.randint(3, 8),
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        rope_theta=rng.choice([1e4, 5e5]),
        rope_scaling=None,
        no_rope_layer_interval=rng.choice([0, 2, 4]),
        attention_chunk_size=rng.choice([0, 4, 8, 16]),
        use_qk_norm=rng.random() < 0.7,
        attn_temperature_tuning=rng.random() < 0.7,
        floor_scale=rng.choice([2.0, 4.0]),
        attn_scale=rng.choice([0.1, 0.3]),
        num_local_experts=experts,
        num_experts_per_tok=rng.choice([1, 2]),
        interleave_moe_layer_step=rng.choice([1, 2]),
    )


def meta_width(size):
    """Width of an MLP by Meta's rule: two thirds of four times, up to a multiple of 16."""
    width = int(2 * (4 * size) / 3)
    return width + -width % 16


def meta_model(config, max_seq_len=64, seed=0):
    """Meta's Transformer at the sizes of a Llama4Config, filled at random."""
    reference.start_meta()
    from llama_models.llama4.args import ModelArgs, MoEArgs
    from llama_models.llama4.model import Transformer

    args = ModelArgs(
        dim=config.hidden_size,
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads,
        vocab_size=config.vocab_size,
        multiple_of=16,
        ffn_dim_multiplier=1.0,
        ffn_exp=4.0,
        norm_eps=config.rms_norm_eps,
        attention_chunk_size=config.attention_chunk_size or None,
        rope_theta=config.rope_theta,
        nope_layer_interval=config.no_rope_layer_interval or None,
        use_qk_norm=config.use_qk_norm,
        attn_temperature_tuning=config.attn_temperature_tuning,
        floor_scale=config.floor_scale,
        attn_scale=config.attn_scale,
        moe_args=MoEArgs(
            num_experts=config.num_local_experts,
            top_k=config.num_experts_per_tok,
            auto_scale_F=False,
            interleave_moe_layer_step=config.interleave_moe_layer_step,
        ),
        max_batch_size=4,
        max_seq_len=max_seq_len,
    )
    with _caches_stay():
        model = reference.fill(Transformer(args), seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts.w" in name or name.endswith("router_DE"):
                inputs = parameter.shape[-2]  # stored the other way round
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise * inputs**-0.5)
    return model.eval()


def meta_logits(model, tokens, start=0):
    """fp32 [B, T, W] of Meta's model for int [B, T]; `start` tokens are in its cache."""
    from llama_models.llama4.datatypes import TransformerInput

    given = TransformerInput(tokens=tokens, tokens_position=start)
    return model(given).logits.clone()


def ours_from_meta(meta, config):
    """This package's model with the parameters of Meta's."""
    model = Llama4(config)
    missing, other = model.load_state_dict(
        from_meta(meta.state_dict(), config), strict=False
    )
    assert not other and all(name.endswith("choice_bias") for name in missing)
    return model.eval()


def hub_model(ours):
    """transformers' Llama4ForCausalLM with the parameters of ours."""
    reference.import_torchvision()
    from transformers import Llama4ForCausalLM, Llama4TextConfig

    config, size = ours.config, asdict(ours.config)
    for name in (
        "rope_theta",
        "rope_scaling",
        "shared_expert",
        "num_hidden_layers",
        "no_rope_layer_interval",
    ):
        del size[name]
    hub = Llama4ForCausalLM._from_config(
        Llama4TextConfig(
            **size
            | {
                "floor_scale": int(config.floor_scale),
                "attention_chunk_size": config.attention_chunk_size or 64,
            },
            num_hidden_layers=config.num_hidden_layers,
            # Their word means the opposite: 1 for a layer that has RoPE.
            no_rope_layers=[
                int(config.has_rope(i)) for i in range(config.num_hidden_layers)
            ],
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            max_position_embeddings=64,
            pad_token_id=None,
        ),
        attn_implementation="eager",
    ).eval()
    state = ours.state_dict()
    state = {n: t for n, t in state.items() if not n.endswith("choice_bias")}
    missing, other = hub.load_state_dict(state, strict=False)
    assert not missing and not other, (missing, other)
    return hub
