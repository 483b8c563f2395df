"""transformers' models whose images are tokens, small and random, as witnesses for chapter 17."""

import random

import torch
import transformers

import reference  # noqa: F401  which makes torchvision importable first


def quiet():
    """No warnings about token ids, and no progress bars."""
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def sizes(seed):
    """(entries of a vision_config, entries of a text_config): everything varies."""
    quiet()
    rng = random.Random(seed)
    heads, patch = rng.choice([2, 3, 4]), rng.choice([4, 7])
    vision = {
        "hidden_size": heads * 8 * rng.choice([1, 2]),
        "intermediate_size": rng.choice([40, 96]),
        "num_hidden_layers": rng.randint(2, 4),
        "num_attention_heads": heads,
        "image_size": patch * rng.choice([2, 4]) + rng.choice([0, 1]),
        "patch_size": patch,
    }
    heads = rng.choice([2, 4])
    text = {
        "vocab_size": rng.randint(60, 90),
        "hidden_size": heads * 16,
        "intermediate_size": rng.choice([64, 96]),
        "num_hidden_layers": rng.randint(2, 3),
        "num_attention_heads": heads,
        "num_key_value_heads": rng.choice([1, 2]),
        "head_dim": 16,
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    return vision, text


@torch.no_grad()
def shaken(model, seed):
    """A model whose numbers are all random, those that would begin as 0 or 1 too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.copy_(noise * parameter.shape[-1] ** -0.5)
        else:
            one = name.endswith("norm.weight") or "norm" in name and "weight" in name
            parameter.copy_(0.3 * noise + float(one))
    return model.eval()


def siglip(seed):
    """SigLIP, both encoders."""
    vision, text = sizes(seed)
    width = vision["hidden_size"]
    text = {
        "vocab_size": text["vocab_size"],
        "hidden_size": width,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": vision["num_attention_heads"],
        "max_position_embeddings": 8,
        "projection_size": width,
    }
    return shaken(
        transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text, vision_config=vision)
        ),
        seed,
    )


def llava(seed, layer=-1):
    """LLaVA: SigLIP, two matrices, Llama."""
    vision, text = sizes(seed)
    config = transformers.LlavaConfig(
        vision_config=transformers.SiglipVisionConfig(**vision),
        text_config=transformers.LlamaConfig(**text),
        image_token_id=text["vocab_size"] - 1,
        vision_feature_layer=layer,
        vision_feature_select_strategy="full",
    )
    return shaken(transformers.LlavaForConditionalGeneration(config), seed)


def paligemma(seed):
    """PaliGemma: SigLIP, one matrix, Gemma; the prompt is read in both directions."""
    vision, text = sizes(seed)
    config = transformers.PaliGemmaConfig(
        vision_config=transformers.SiglipVisionConfig(**vision, vision_use_head=False),
        text_config=transformers.GemmaConfig(**text),
        image_token_index=text["vocab_size"] - 1,
        projection_dim=text["hidden_size"],
        hidden_size=text["hidden_size"],
    )
    return shaken(transformers.PaliGemmaForConditionalGeneration(config), seed)


def idefics3(seed):
    """Idefics3: SigLIP, squares of patches joined, Llama."""
    vision, text = sizes(seed)
    vision["image_size"] -= vision["image_size"] % vision["patch_size"]
    config = transformers.Idefics3Config(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**text),
        image_token_id=text["vocab_size"] - 1,
        scale_factor=2,
    )
    return shaken(transformers.Idefics3ForConditionalGeneration(config), seed)


def smolvlm(seed):
    """SmolVLM: Idefics3 under another name."""
    vision, text = sizes(seed)
    vision["image_size"] -= vision["image_size"] % vision["patch_size"]
    config = transformers.SmolVLMConfig(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**text),
        image_token_id=text["vocab_size"] - 1,
        scale_factor=2,
    )
    return shaken(transformers.SmolVLMForConditionalGeneration(config), seed)


def pooling_projector(patches, size, text_size, tokens, seed):
    """Gemma 3's projector of so many patches to so many tokens."""
    from transformers.models.gemma3.modeling_gemma3 import Gemma3MultiModalProjector

    config = transformers.Gemma3Config(
        text_config={"hidden_size": text_size},
        vision_config={
            "hidden_size": size,
            "num_attention_heads": 2,
            "image_size": round(patches**0.5),
            "patch_size": 1,
        },
        mm_tokens_per_image=tokens,
    )
    return shaken(Gemma3MultiModalProjector(config), seed)


MAKERS = {"llava": llava, "paligemma": paligemma, "idefics3": idefics3}


@torch.no_grad()
def hub_logits(model, tokens, pixels, prompt):
    """What transformers makes of texts with one image each.

    Args:
        model: of MAKERS.
        tokens: int [B, T], image tokens as often as they stand.
        pixels: [B, 3, S, S], or for Idefics3 [B, tiles, 3, S, S].
        prompt: how many tokens of each row are the prompt, for PaliGemma.

    Returns:
        fp32 [B, T, W].
    """
    more = {}
    if model.config.model_type == "paligemma":
        more["token_type_ids"] = (torch.arange(tokens.shape[1]) >= prompt).long()
        more["token_type_ids"] = more["token_type_ids"][None].expand_as(tokens)
    if model.config.model_type in ("idefics3", "smolvlm") and pixels.ndim == 4:
        pixels = pixels[:, None]  # [B, tiles, 3, S, S]
    return model(input_ids=tokens, pixel_values=pixels, **more).logits
