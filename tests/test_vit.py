"""The vision transformer against torchvision's, timm's and transformers' at random sizes."""

import importlib.util
import random
from dataclasses import replace

import pytest
import torch

import reference
from mllama_lite.errors import InputError
from mllama_lite.families.vit import ViT, ViTConfig, load_vit, vit_config

SEEDS = range(24)
INPUTS = "24 random configurations x 2 images"


def random_config(seed):
    draw = random.Random(seed)
    heads, patch = draw.choice([1, 2, 3]), draw.choice([4, 7, 8])
    return ViTConfig(
        image_size=patch * draw.choice([1, 2, 4, 5]),
        patch_size=patch,
        hidden_size=heads * draw.choice([8, 16]),
        num_hidden_layers=draw.choice([1, 2, 3]),
        num_attention_heads=heads,
        intermediate_size=draw.choice([24, 40]),
    )


def pixels(config, seed):
    generator = torch.Generator().manual_seed(seed)
    size = (2, config.num_channels, config.image_size, config.image_size)
    return torch.randn(size, generator=generator)


def largest(a, b):
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


def torchvision_model(config, seed):
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(
        config.image_size,
        config.patch_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.hidden_size,
        config.intermediate_size,
        num_classes=7,
    )
    return reference.fill(model, seed).eval()


def torchvision_tokens(model, images):
    """All tokens after the last norm; the model itself goes on with the first alone."""
    seen = []
    handle = model.encoder.register_forward_hook(lambda *of: seen.append(of[2]))
    model(images)
    handle.remove()
    return seen[0]


def test_as_torchvision(proof):
    worst = 0.0
    for seed in SEEDS:
        config = random_config(seed)
        theirs = torchvision_model(config, seed)
        ours = load_vit(theirs.state_dict(), config)
        images = pixels(config, seed)
        wanted = torchvision_tokens(theirs, images)
        worst = max(worst, largest(ours(images), wanted))
        assert torch.equal(ours.patches(images), ours(images)[:, 1:])
    proof("ViT: all tokens", "torchvision", INPUTS, worst, 2e-5)


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs timm")
def test_as_timm():
    from timm.models.vision_transformer import VisionTransformer

    worst = 0.0
    for seed in SEEDS:
        config = random_config(seed)
        theirs = VisionTransformer(
            config.image_size,
            config.patch_size,
            num_classes=7,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            mlp_ratio=config.intermediate_size / config.hidden_size,
        )
        if theirs.blocks[0].mlp.fc1.out_features != config.intermediate_size:
            config = replace(
                config, intermediate_size=theirs.blocks[0].mlp.fc1.out_features
            )
        reference.fill(theirs, seed).eval()
        ours = load_vit(theirs.state_dict(), config)
        images = pixels(config, seed)
        worst = max(worst, largest(ours(images), theirs.forward_features(images)))
    assert worst < 2e-5


@pytest.mark.witness
def test_as_transformers(proof):
    from transformers import ViTConfig as TheirConfig
    from transformers import ViTModel

    worst = 0.0
    for seed in SEEDS:
        config = random_config(seed)
        theirs = TheirConfig(**vars(config), attn_implementation="sdpa")
        model = reference.fill(ViTModel(theirs, add_pooling_layer=False), seed).eval()
        images = pixels(config, seed)
        ours = load_vit(from_transformers(model.state_dict()), config)
        wanted = model(pixel_values=images).last_hidden_state
        worst = max(worst, largest(ours(images), wanted))
    proof("ViT: all tokens", "transformers", INPUTS, worst, 2e-5)


def from_transformers(state):
    """Query, key and value side by side, and timm's names."""
    found = {}
    for name, tensor in state.items():
        for theirs, mine in (
            ("embeddings.cls_token", "cls_token"),
            ("embeddings.position_embeddings", "pos_embed"),
            ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
            ("layers.", "blocks."),
            ("layernorm_before", "norm1"),
            ("layernorm_after", "norm2"),
            ("layernorm.", "norm."),
            ("attention.o_proj", "attn.proj"),
            ("attention.", "attn."),
        ):
            name = name.replace(theirs, mine)
        found[name] = tensor
    for name in [name for name in found if ".q_proj." in name]:
        parts = [found.pop(name.replace("q_proj", f"{x}_proj")) for x in "qkv"]
        found[name.replace("q_proj", "qkv")] = torch.cat(parts)
    return found


def test_the_defaults_are_vit_b_16s():
    from torchvision.models import vit_b_16

    with torch.device("meta"):
        theirs, ours = vit_b_16().state_dict(), ViT(ViTConfig())
    assert vit_config(theirs) == ViTConfig()
    mine = sum(p.numel() for p in ours.parameters())
    head = sum(t.numel() for name, t in theirs.items() if name.startswith("heads."))
    assert mine == sum(t.numel() for t in theirs.values()) - head == 85_798_656


def test_older_names_of_torchvision():
    config = random_config(0)
    state = reference.fill(torchvision_model(config, 0)).state_dict()
    older = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): tensor
        for name, tensor in state.items()
    }
    images = pixels(config, 0)
    assert torch.equal(load_vit(older, config)(images), load_vit(state, config)(images))


def test_what_does_not_fit_is_named():
    config = random_config(3)
    state = dict(torchvision_model(config, 3).state_dict())
    last = "encoder.layers.encoder_layer_0.mlp.3.bias"
    for changed, told in (
        ({k: v for k, v in state.items() if k != last}, "blocks.0.mlp.fc2.bias and 0"),
        (state | {"fc_norm.weight": torch.ones(3)}, "fc_norm.weight and 0 more: the"),
        (state | {last: torch.ones(3)}, r"another shape \(\(3,\) for"),
    ):
        with pytest.raises(InputError, match=told):
            load_vit(changed, config)
    with pytest.raises(InputError, match="no patch_embed.proj.weight"):
        vit_config({"x": torch.ones(1)})
    with pytest.raises(InputError, match="patch_size 3"):
        ViTConfig(image_size=32, patch_size=3)
    with pytest.raises(InputError, match="4 places"):
        vit_config(state | {"encoder.pos_embedding": torch.zeros(1, 4, 8)})
