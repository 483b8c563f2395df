# Generated from notebooks/15_files.ipynb: edit there, or here and run `make update`.
"""Configurations: the hub's `config.json` and Meta's `params.json`, read and written.

Built in chapter 15, notebooks/15_files.ipynb. What an entry may hold stands in
tables; every published Llama 3 lies far inside, and whatever lies inside can be built.
"""

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from mllama_lite.decoder import TextConfig
from mllama_lite.errors import InputError, shown
from mllama_lite.files import (
    ANY_OBJECT,
    FLAG,
    check_fields,
    check_relations,
    list_of,
    maybe,
    number,
    one_of,
    whole,
)
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import MllamaConfig
from mllama_lite.rope import RopeScaling
from mllama_lite.tiles import canvases
from mllama_lite.tokenizer import NUM_SPECIAL_TOKENS


# What an entry may be: many times what the 405B has, and nothing that cannot be built.
WIDTH = whole(1, 2**20)
DEPTH = whole(1, 512)
HEADS = whole(1, 1024)
INDICES = list_of(whole(0, 511), least=1, most=512)
VOCABULARY = whole(1, 2**24)
TOKEN = whole(0, 2**25)
CONTEXT = whole(1, 10**8)
EPSILON = number(1e-12, 0.1)
THETA = number(1, 1e12)
FACTOR = number(1e-3, 1e6)
MOST_PIXELS = 2**25  # of an image: all its tiles together
MOST_PATCHES = 2**16

HUB_FIELDS = {
    "text_config": ANY_OBJECT,
    "vision_config": ANY_OBJECT,
    "image_token_index": maybe(TOKEN),
    "eos_token_id": maybe(TOKEN, list_of(TOKEN)),
}

TEXT_FIELDS = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": maybe(whole(2, 4096)),
    "rms_norm_eps": EPSILON,
    "rope_theta": maybe(THETA),
    "rope_scaling": maybe(ANY_OBJECT),
    "rope_parameters": maybe(ANY_OBJECT),
    "max_position_embeddings": maybe(CONTEXT),
    "tie_word_embeddings": maybe(FLAG),
    "eos_token_id": maybe(TOKEN, list_of(TOKEN)),
    "hidden_act": maybe(one_of("silu")),
    "attention_bias": maybe(one_of(False)),
    "mlp_bias": maybe(one_of(False)),
}

CROSS_FIELDS = {"cross_attention_layers": INDICES}

ROPE_KIND = {
    "rope_type": maybe(one_of("default", "llama3")),
    "type": maybe(one_of("default", "llama3")),
    "rope_theta": maybe(THETA),
}

ROPE_FIELDS = {
    "factor": FACTOR,
    "low_freq_factor": FACTOR,
    "high_freq_factor": FACTOR,
    "original_max_position_embeddings": CONTEXT,
}

VISION_FIELDS = {
    "hidden_size": maybe(WIDTH),
    "attention_heads": maybe(HEADS),
    "intermediate_size": maybe(WIDTH),
    "num_hidden_layers": maybe(DEPTH),
    "num_global_layers": maybe(DEPTH),
    "image_size": maybe(whole(1, 4096)),
    "patch_size": maybe(whole(1, 4096)),
    "num_channels": maybe(one_of(3)),
    "max_num_tiles": maybe(whole(1, 64)),
    "norm_eps": maybe(EPSILON),
    "intermediate_layers_indices": INDICES,
    "supported_aspect_ratios": maybe(list_of(list_of(whole(1, 64), 2, 2))),
    "vision_output_dim": maybe(whole(1, 2**30)),
    "hidden_act": maybe(one_of("gelu")),
}


def config_from_hub(
    document: dict[str, Any], where: Path | str = "config.json"
) -> MllamaConfig:
    """Read a `config.json` of the hub: `mllama`, or a text-only `llama`.

    Files written by transformers 4 (`rope_scaling`, `rope_theta`) and 5
    (`rope_parameters`) are both understood.

    Args:
        document: dict, the parsed file.
        where: what to call the file in an error.

    Returns:
        MllamaConfig.

    Raises:
        InputError: another architecture; an entry that is missing, of another type, out
            of range, or that contradicts another; a setting that this code does not
            have.
    """
    kind = document.get("model_type") if isinstance(document, dict) else None
    if kind not in ("mllama", "llama"):
        raise InputError(
            f"{where} has model_type {shown(kind)}: expected 'mllama' or 'llama'; "
            "choose a Llama 3 model."
        )
    if kind == "llama":
        text, ends = _text_config(document, where)
        return MllamaConfig(text, None, eos_token_ids=ends)
    given = check_fields(document, HUB_FIELDS, where)
    text, ends = _text_config(given["text_config"], where, images=True)
    vision = _vision_config(given["vision_config"], where)
    image, vocab = given.setdefault("image_token_index", 128256), text.vocab_size
    last = vocab + text.num_extra_embeddings - 1
    beyond = (
        vocab <= image <= last,
        "image_token_index",
        f"a row of the embedding beyond the vocabulary, {vocab} to {last}",
    )
    check_relations(given, [beyond], where)
    return MllamaConfig(text, vision, image, _ids(given.get("eos_token_id")) or ends)


def _text_config(
    entries: Any, where: Path | str, images: bool = False
) -> tuple[TextConfig, tuple[int, ...]]:
    """(TextConfig, ids that end an answer) from the entries of a `config.json`."""
    within = "text_config." if images else ""
    table = TEXT_FIELDS | (CROSS_FIELDS if images else {})
    given = check_fields(entries, table, where, within)
    rope, scaling = _rope(given, where, within)
    width, depth = given["hidden_size"], given["num_hidden_layers"]
    heads, key_heads = given["num_attention_heads"], given["num_key_value_heads"]
    cross = tuple(given.get("cross_attention_layers", ()))
    tied = given.get("tie_word_embeddings", False)
    divides = "head_dim" in given or width % heads == 0
    head_dim = given.setdefault("head_dim", width // heads)
    relations = [
        (divides, "num_attention_heads", f"a divisor of hidden_size, {width}"),
        (head_dim % 2 == 0, "head_dim", "an even number"),
        (
            heads % key_heads == 0,
            "num_key_value_heads",
            f"a divisor of num_attention_heads, {heads}",
        ),
        (
            _rising(cross, depth) and len(cross) < depth,
            "cross_attention_layers",
            f"rising indices below {depth}, and not all of them",
        ),
        (
            not (tied and images),
            "tie_word_embeddings",
            "false with images, where the embedding has more rows than the head",
        ),
    ]
    check_relations(given, relations, where, within)
    config = TextConfig(
        vocab_size=given["vocab_size"],
        hidden_size=width,
        intermediate_size=given["intermediate_size"],
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        rms_norm_eps=given["rms_norm_eps"],
        rope_theta=rope,
        rope_scaling=scaling,
        max_position_embeddings=given.get("max_position_embeddings", 131072),
        tie_word_embeddings=tied,
        cross_attention_layers=cross,
        num_extra_embeddings=8 if images else 0,
    )
    return config, _ids(given.get("eos_token_id"))


def _rope(
    given: dict[str, Any], where: Path | str, within: str
) -> tuple[float, RopeScaling | None]:
    """(theta, RopeScaling or None), in whichever of the two ways they are written."""
    name = "rope_parameters" if given.get("rope_parameters") else "rope_scaling"
    entries, within = given.get(name, {}), f"{within}{name}."
    found = check_fields(entries, ROPE_KIND, where, within)
    theta = found.get("rope_theta", given.get("rope_theta"))
    if theta is None:
        raise InputError(
            f"{where} has no entry 'rope_theta': expected {THETA.expected}; download "
            "the file again."
        )
    kind = found.get("rope_type", found.get("type"))
    named = kind is not None or not entries.keys() - {"rope_theta"}
    check_relations(entries, [(named, "rope_type", "a name")], where, within)
    if kind != "llama3":
        return theta, None
    scaling = RopeScaling(**check_fields(entries, ROPE_FIELDS, where, within))
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    more = (low < high, "high_freq_factor", f"more than low_freq_factor, {low}")
    check_relations(entries, [more], where, within)
    return theta, scaling


def _rising(indices: Sequence[int], end: int) -> bool:
    """Whether indices are sorted, each there once, and below an end."""
    return list(indices) == sorted(set(indices)) and all(i < end for i in indices)


def _ids(ends: int | list[int] | None) -> tuple[int, ...]:
    """`eos_token_id`, one or several, as a tuple."""
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def _vision_config(entries: Any, where: Path | str) -> VisionConfig:
    """VisionConfig from the entries of a `config.json`."""
    within = "vision_config."
    given = check_fields(entries, VISION_FIELDS, where, within)
    sizes = {f.name: given[f.name] for f in fields(VisionConfig) if f.name in given}
    indices = tuple(given["intermediate_layers_indices"])
    config = VisionConfig(**sizes | {"intermediate_layers_indices": indices})
    given = vars(config) | given
    width, depth = config.vision_output_dim, config.num_hidden_layers
    known = [list(canvas) for canvas in canvases(config.max_num_tiles)]
    relations = [
        *_tile_relations(config, "image_size"),
        (
            config.hidden_size % config.attention_heads == 0,
            "attention_heads",
            f"a divisor of hidden_size, {config.hidden_size}",
        ),
        (
            _rising(indices, depth),
            "intermediate_layers_indices",
            f"rising indices below {depth}",
        ),
        (
            given.setdefault("vision_output_dim", width) == width,
            "vision_output_dim",
            f"{width}, hidden_size for the final state and for each one kept",
        ),
        (
            given.setdefault("supported_aspect_ratios", known) == known,
            "supported_aspect_ratios",
            f"{known}, those of {config.max_num_tiles} tiles in their order",
        ),
    ]
    check_relations(given, relations, where, within)
    return config


def _tile_relations(config: VisionConfig, name: str) -> Iterator[tuple[bool, str, str]]:
    """Tiles are cut into whole patches, and an image has a bounded number of them."""
    side, patch, tiles = config.image_size, config.patch_size, config.max_num_tiles
    yield side % patch == 0, name, f"a multiple of the patches' side, {patch}"
    fits = tiles * side**2 <= MOST_PIXELS and tiles * config.num_patches <= MOST_PATCHES
    room = f"{MOST_PIXELS:,} pixels and {MOST_PATCHES:,} patches"
    yield fits, name, f"{tiles} tiles of together at most {room}"


META_FIELDS = {
    "dim": WIDTH,
    "n_layers": DEPTH,
    "n_heads": HEADS,
    "n_kv_heads": maybe(HEADS),
    "vocab_size": maybe(VOCABULARY),
    "multiple_of": WIDTH,
    "ffn_dim_multiplier": maybe(FACTOR),
    "norm_eps": maybe(EPSILON),
    "rope_theta": maybe(THETA),
    "use_scaled_rope": maybe(FLAG),
    "vision_chunk_size": maybe(whole(-1, 4096)),
    "vision_max_num_chunks": maybe(whole(-1, 64)),
    "vision_num_cross_attention_layers": maybe(whole(-1, 512)),
}


def config_from_meta(
    params: dict[str, Any], where: Path | str = "params.json"
) -> MllamaConfig:
    """Read Meta's `params.json`. What it leaves out, Meta's code has as constants.

    Args:
        params: dict, the parsed file.
        where: what to call the file in an error.

    Returns:
        MllamaConfig.

    Raises:
        InputError: an entry is missing, of another type, out of range, or contradicts
            another.

    Source: llama_models/llama3/args.py; multimodal/model.py, `FeedForward` (width) and
    `_init_fusion_schedule` (which layers).
    """
    within = "model." if isinstance(params, dict) and "model" in params else ""
    entries = params["model"] if within else params
    given = check_fields(entries, META_FIELDS, where, within)
    width, heads, num_layers = given["dim"], given["n_heads"], given["n_layers"]
    key_heads, multiple = given.get("n_kv_heads", heads), given["multiple_of"]
    factor = given.get("ffn_dim_multiplier", 1.0)
    hidden = -(-int(factor * int(8 * width / 3)) // multiple) * multiple
    relations = [
        (width % (2 * heads) == 0, "dim", f"a multiple of 2 n_heads, {2 * heads}"),
        (heads % key_heads == 0, "n_kv_heads", f"a divisor of n_heads, {heads}"),
        (
            WIDTH.fits(hidden),
            "ffn_dim_multiplier",
            f"an MLP as wide as {WIDTH.expected}",
        ),
    ]
    side = given.get("vision_chunk_size", -1)
    vision, cross = None, tuple[int, ...]()
    if side > 0:
        tiles = given.get("vision_max_num_chunks", 4)
        num_cross = given.get("vision_num_cross_attention_layers", 0)
        vision = VisionConfig(image_size=side, max_num_tiles=tiles)
        relations += [
            (
                0 < num_cross <= num_layers,
                "vision_num_cross_attention_layers",
                f"1 to n_layers, {num_layers}, in a model with images",
            ),
            (tiles > 0, "vision_max_num_chunks", "1 or more in a model with images"),
            *_tile_relations(vision, "vision_chunk_size"),
        ]
    check_relations(given, relations, where, within)
    if vision:
        # One cross layer before every `step`-th self layer, counted from the last.
        step = -(-num_layers // num_cross)
        before = list(range(num_layers))[::-1][::step][:num_cross][::-1]
        cross = tuple(i + already for already, i in enumerate(before))
    text = TextConfig(
        vocab_size=given.get("vocab_size", 128256),
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=num_layers + len(cross),
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=width // heads,
        rms_norm_eps=given.get("norm_eps", 1e-5),
        rope_theta=float(given.get("rope_theta", 500000)),
        rope_scaling=RopeScaling() if given.get("use_scaled_rope") else None,
        cross_attention_layers=cross,
        num_extra_embeddings=8 if cross else 0,
    )
    return MllamaConfig(text, vision, image_token_index=text.vocab_size)


def config_to_hub(config: MllamaConfig, dtype: torch.dtype) -> dict[str, Any]:
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
