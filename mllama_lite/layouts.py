"""The hub's layout and Meta's: what each calls things, and how one becomes the other.

Built in chapter 9, notebooks/09_checkpoint.ipynb. Configurations first, then the names
and shapes of tensors. Nothing here reads a file.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from mllama_lite.decoder import TextConfig
from mllama_lite.errors import InputError
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import MllamaConfig
from mllama_lite.rope import RopeScaling, to_half_split
from mllama_lite.tiles import canvases
from mllama_lite.tokenizer import NUM_SPECIAL_TOKENS


def config_from_meta(params, where="params.json"):
    """Read Meta's `params.json`. What it leaves out, Meta's code has as constants.

    Args:
        params: dict, the parsed file.
        where: what to call the file in an error.

    Returns:
        MllamaConfig.

    Raises:
        InputError: an entry is missing.

    Source: llama_models/llama3/args.py; multimodal/model.py, `FeedForward` (width) and
    `_init_fusion_schedule` (which layers).
    """
    params = params.get("model", params)
    side = params.get("vision_chunk_size", -1)
    try:
        width, heads, num_layers = params["dim"], params["n_heads"], params["n_layers"]
        multiple = params["multiple_of"]
        num_cross = params["vision_num_cross_attention_layers"] if side > 0 else 0
    except KeyError as error:
        raise InputError(
            f"{where} has no entry {error}: expected Meta's params.json of a Llama 3 "
            "model; download the file again."
        ) from None
    hidden = int((params.get("ffn_dim_multiplier") or 1.0) * int(8 * width / 3))
    cross = ()
    if num_cross > 0:
        # One cross layer before every `step`-th self layer, counted from the last.
        step = -(-num_layers // num_cross)
        before = list(range(num_layers))[::-1][::step][:num_cross][::-1]
        cross = tuple(i + already for already, i in enumerate(before))
    text = TextConfig(
        vocab_size=params.get("vocab_size", 128256),
        hidden_size=width,
        intermediate_size=-(-hidden // multiple) * multiple,
        num_hidden_layers=num_layers + len(cross),
        num_attention_heads=heads,
        num_key_value_heads=params.get("n_kv_heads") or heads,
        head_dim=width // heads,
        rms_norm_eps=params.get("norm_eps", 1e-5),
        rope_theta=float(params.get("rope_theta", 500000)),
        rope_scaling=RopeScaling() if params.get("use_scaled_rope") else None,
        cross_attention_layers=cross,
        num_extra_embeddings=8 if cross else 0,
    )
    vision = VisionConfig(image_size=side) if side > 0 else None
    return MllamaConfig(text, vision, image_token_index=text.vocab_size)


@dataclass
class Recipe:
    """How one parameter comes out of a checkpoint.

    Attributes:
        sources: list of (name in the checkpoint, shape there). Several are stacked
            along the rows of the parameter.
        convert: applied to what is stored; None if it is stored as it is needed.
    """

    sources: list[tuple[str, tuple[int, ...]]]
    convert: Callable | None = None


def hub_recipes(shapes, text_only):
    """Recipes for the hub's layout: the names are ours already.

    Args:
        shapes: dict from our parameter names to shapes.
        text_only: whether this is a `LlamaForCausalLM`.

    Returns:
        dict from our name to Recipe.
    """
    prefix = "language_model." if text_only else ""
    return {
        name: Recipe([(name.removeprefix(prefix), tuple(shape))])
        for name, shape in shapes.items()
    }


def old_hub_name(name):
    """Names that transformers has used in memory since 4.52, as the files have them."""
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^model\.(vision_model|multi_modal_projector)\.", r"\1.", name)
    return re.sub(r"^lm_head\.", "language_model.lm_head.", name)


def meta_recipes(shapes, config):
    """Recipes for Meta's layout.

    Args:
        shapes: dict from our parameter names to shapes.
        config: MllamaConfig.

    Returns:
        dict from our name to Recipe.

    Source: llama_models/llama3/multimodal/model.py, names and shapes of its parameters.
    """
    text, vision = config.text, config.vision
    prefix = "text_model." if vision else ""
    recipes = {}
    for name, shape in shapes.items():
        shape = tuple(shape)
        if name.startswith("language_model.model.layers."):
            index, part = re.match(
                r"language_model\.model\.layers\.(\d+)\.(.*)", name
            ).groups()
            stack, place = _meta_layer(int(index), text)
            source, convert = f"{prefix}{stack}.{place}.{_meta_part(part)}", None
            heads = {
                "q_proj": text.num_attention_heads,
                "k_proj": text.num_key_value_heads,
            }
            if stack == "layers" and part.split(".")[1] in heads:
                num_heads = heads[part.split(".")[1]]
                convert = lambda weight, num_heads=num_heads: to_half_split(
                    weight, num_heads
                )
            recipes[name] = Recipe([(source, shape)], convert)
        elif name.endswith("embed_tokens.weight"):
            rows, width = shape
            sources = [(f"{prefix}tok_embeddings.weight", (text.vocab_size, width))]
            if rows > text.vocab_size:
                extra = (rows - text.vocab_size, width)
                sources.append((f"{prefix}learnable_embedding.weight", extra))
            recipes[name] = Recipe(sources)
        elif name.startswith("language_model."):
            part = {"lm_head": "output", "norm": "norm"}[name.split(".")[-2]]
            recipes[name] = Recipe([(f"{prefix}{part}.weight", shape)])
        elif name.startswith("multi_modal_projector."):
            recipes[name] = Recipe(
                [(f"vision_model.vision_projection.{name.split('.')[-1]}", shape)]
            )
        else:
            recipes[name] = _meta_vision_recipe(
                name.removeprefix("vision_model."), shape, vision
            )
    return recipes


def _meta_layer(index, text):
    """Meta counts self- and cross-attention layers apart: (stack, place in it)."""
    if index in text.cross_attention_layers:
        return "cross_attention_layers", text.cross_attention_layers.index(index)
    return "layers", text.self_attention_layers.index(index)


def _meta_part(part):
    """Meta's name of a part of a text layer."""
    for ours, theirs in (
        (r"^(?:self|cross)_attn\.([qkvo])_proj", r"attention.w\1"),
        (r"^cross_attn\.([qk])_norm", r"attention.\1_norm"),
        (r"^input_layernorm", "attention_norm"),
        (r"^post_attention_layernorm", "ffn_norm"),
        (r"^mlp\.gate_proj", "feed_forward.w1"),
        (r"^mlp\.down_proj", "feed_forward.w2"),
        (r"^mlp\.up_proj", "feed_forward.w3"),
        (r"^cross_attn_attn_gate", "gate_attn"),
        (r"^cross_attn_mlp_gate", "gate_ffwd"),
    ):
        part = re.sub(ours, theirs, part)
    return part


def _meta_vision_recipe(name, shape, vision):
    """Recipe of a parameter of the vision encoder."""
    tiles, convert = vision.max_num_tiles, None
    if name == "patch_embedding.weight":
        theirs, stored = (
            "conv1._linear.weight",
            (shape[0], shape[1] * shape[2] * shape[3]),
        )
        convert = lambda weight: weight.view(shape)
    elif name.endswith("tile_positional_embedding.embedding.weight"):
        theirs = name.split("_")[0] + "_tile_pos_embed.embedding"
        stored = (tiles, tiles, 1, vision.hidden_size)
        convert = lambda grid: tile_table(grid, tiles)
    elif name.endswith("tile_positional_embedding.gate"):
        theirs, stored = name.split("_")[0] + "_tile_pos_embed.gate", shape
    elif name == "gated_positional_embedding.tile_embedding.weight":
        theirs = "gated_positional_embedding"
        stored = (tiles, tiles, vision.num_patches, vision.hidden_size)
        convert = lambda grid: tile_table(grid, tiles)
    else:
        theirs, stored = name, shape
        for ours, meta in (
            (r"^gated_positional_embedding\.gate", "gated_positional_embedding_gate"),
            (r"^gated_positional_embedding\.embedding", "positional_embedding"),
            (r"^layernorm_(pre|post)", r"ln_\1"),
            (r"transformer\.layers", "transformer.resblocks"),
            (r"self_attn\.([qkvo])_proj", r"attn.w\1"),
            (r"mlp\.fc1", "mlp.c_fc"),
            (r"mlp\.fc2", "mlp.c_proj"),
            (r"\.input_layernorm", ".ln_1"),
            (r"\.post_attention_layernorm", ".ln_2"),
        ):
            theirs = re.sub(ours, meta, theirs)
    return Recipe([(f"vision_model.vision_encoder.{theirs}", stored)], convert)


def tile_table(grid, max_tiles):
    """Meta's vectors by (row, column) as the hub's table by aspect_ratio_id.

    Args:
        grid: [K, K, ...], the vectors of the tile in each row and column.
        max_tiles: K.

    Returns:
        [number of canvases + 1, K·(...)]: for each canvas its tiles' vectors row by
        row, then zeros; row 0 is zero.
    """
    arrangements = canvases(max_tiles)
    table = grid.new_zeros(len(arrangements) + 1, max_tiles, grid[0, 0].numel())
    for i, (rows, columns) in enumerate(arrangements, start=1):
        table[i, : rows * columns] = grid[:rows, :columns].reshape(rows * columns, -1)
    return table.flatten(1)


def config_to_hub(config, dtype):
    """The inverse of `config_from_hub`: a dict that transformers understands.

    Args:
        config: MllamaConfig.
        dtype: torch dtype of the parameters.

    Returns:
        dict for a `config.json`.
    """
    text, vision = config.text, config.vision
    entries = {
        name: getattr(text, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "rms_norm_eps",
            "rope_theta",
            "max_position_embeddings",
            "tie_word_embeddings",
        )
    }
    # The special tokens are the last of the vocabulary.
    first_special = text.vocab_size - NUM_SPECIAL_TOKENS
    entries |= {
        "hidden_act": "silu",
        "bos_token_id": max(first_special, 0),
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": first_special + 4 if first_special >= 0 else None,
    }
    entries["rope_scaling"] = None
    if text.rope_scaling:
        entries["rope_scaling"] = {"rope_type": "llama3"} | vars(text.rope_scaling)
    common = {"torch_dtype": str(dtype).removeprefix("torch.")}
    if vision is None:
        return (
            {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
            | entries
            | common
        )
    entries["model_type"] = "mllama_text_model"
    entries["cross_attention_layers"] = list(text.cross_attention_layers)
    pictures = dict(vars(vision))
    pictures["intermediate_layers_indices"] = list(vision.intermediate_layers_indices)
    pictures |= {
        "model_type": "mllama_vision_model",
        "hidden_act": "gelu",
        "vision_output_dim": vision.vision_output_dim,
        "supported_aspect_ratios": [
            list(canvas) for canvas in canvases(vision.max_num_tiles)
        ],
    }
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": config.image_token_index,
        "tie_word_embeddings": text.tie_word_embeddings,
        "text_config": entries,
        "vision_config": pictures,
    } | common
