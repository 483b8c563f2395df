# Generated from notebooks/09_checkpoint.ipynb: edit there, or here and run `make update`.
"""The hub's layout and Meta's: what each calls a tensor, and how one becomes the other.

Built in chapter 9, notebooks/09_checkpoint.ipynb. Nothing here reads a file.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from mllama_lite.decoder import TextConfig
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import MllamaConfig
from mllama_lite.rope import to_half_split
from mllama_lite.tiles import canvases


@dataclass
class Conversion:
    """How one parameter comes out of a checkpoint.

    Attributes:
        sources: list of (name in the checkpoint, shape there). Several are stacked
            along the rows of the parameter.
        convert: applied to what is stored; None if it is stored as it is needed.
    """

    sources: list[tuple[str, tuple[int, ...]]]
    convert: Callable | None = None


def hub_conversions(
    shapes: Mapping[str, Sequence[int]], text_only: bool
) -> dict[str, Conversion]:
    """Recipes for the hub's layout: the names are ours already.

    Args:
        shapes: dict from our parameter names to shapes.
        text_only: whether this is a `LlamaForCausalLM`.

    Returns:
        dict from our name to Conversion.
    """
    prefix = "language_model." if text_only else ""
    return {
        name: Conversion([(name.removeprefix(prefix), tuple(shape))])
        for name, shape in shapes.items()
    }


def old_hub_name(name: str) -> str:
    """Names that transformers has used in memory since 4.52, as the files have them."""
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^model\.(vision_model|multi_modal_projector)\.", r"\1.", name)
    return re.sub(r"^lm_head\.", "language_model.lm_head.", name)


def meta_conversions(
    shapes: Mapping[str, Sequence[int]], config: MllamaConfig
) -> dict[str, Conversion]:
    """Recipes for Meta's layout.

    Args:
        shapes: dict from our parameter names to shapes.
        config: MllamaConfig.

    Returns:
        dict from our name to Conversion.

    Source: llama_models/llama3/multimodal/model.py, names and shapes of its parameters.
    """
    text, vision = config.text, config.vision
    prefix = "text_model." if vision else ""
    conversions = {}
    for name, shape in shapes.items():
        shape = tuple(shape)
        if name.startswith("language_model.model.layers."):
            index, part = name.split(".", 4)[3:]
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
            conversions[name] = Conversion([(source, shape)], convert)
        elif name.endswith("embed_tokens.weight"):
            rows, width = shape
            sources: list[tuple[str, tuple[int, ...]]] = [
                (f"{prefix}tok_embeddings.weight", (text.vocab_size, width))
            ]
            if rows > text.vocab_size:
                extra = (rows - text.vocab_size, width)
                sources.append((f"{prefix}learnable_embedding.weight", extra))
            conversions[name] = Conversion(sources)
        elif name.startswith("language_model."):
            part = {"lm_head": "output", "norm": "norm"}[name.split(".")[-2]]
            conversions[name] = Conversion([(f"{prefix}{part}.weight", shape)])
        elif name.startswith("multi_modal_projector."):
            conversions[name] = Conversion(
                [(f"vision_model.vision_projection.{name.split('.')[-1]}", shape)]
            )
        else:
            assert vision is not None  # only a model with images has other parameters
            conversions[name] = _meta_vision_conversion(
                name.removeprefix("vision_model."), shape, vision
            )
    return conversions


def _meta_layer(index: int, text: TextConfig) -> tuple[str, int]:
    """Meta counts self- and cross-attention layers apart: (stack, place in it)."""
    if index in text.cross_attention_layers:
        return "cross_attention_layers", text.cross_attention_layers.index(index)
    return "layers", text.self_attention_layers.index(index)


def _meta_part(part: str) -> str:
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


def _meta_vision_conversion(
    name: str, shape: tuple[int, ...], vision: VisionConfig
) -> Conversion:
    """Conversion of a parameter of the vision encoder."""
    tiles, convert = vision.max_num_tiles, None
    stored: tuple[int, ...]
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
    return Conversion([(f"vision_model.vision_encoder.{theirs}", stored)], convert)


def tile_table(grid: torch.Tensor, max_tiles: int) -> torch.Tensor:
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
