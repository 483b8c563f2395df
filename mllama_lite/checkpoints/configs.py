# Generated from notebooks/09_checkpoint.ipynb: edit there, or here and run `make update`.
"""Configurations: the hub's `config.json` and Meta's `params.json`, read and written.

Built in chapter 9, notebooks/09_checkpoint.ipynb.
"""

from dataclasses import fields

from mllama_lite.decoder import TextConfig
from mllama_lite.errors import InputError
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import MllamaConfig
from mllama_lite.rope import RopeScaling
from mllama_lite.tiles import canvases
from mllama_lite.tokenizer import NUM_SPECIAL_TOKENS


def config_from_hub(document, where="config.json"):
    """Read a `config.json` of the hub: `mllama`, or a text-only `llama`.

    Files written by transformers 4 (`rope_scaling`, `rope_theta`) and 5
    (`rope_parameters`) are both understood.

    Args:
        document: dict, the parsed file.
        where: what to call the file in an error.

    Returns:
        MllamaConfig.

    Raises:
        InputError: another architecture, a missing entry, or a setting that this code
            does not have.
    """
    kind = document.get("model_type") if isinstance(document, dict) else None
    if kind not in ("mllama", "llama"):
        raise InputError(
            f"{where} has model_type {kind!r}: expected 'mllama' or 'llama'; "
            "choose a Llama 3 model."
        )
    try:
        if kind == "llama":
            text, vision = _text_config(document, where, ()), None
        else:
            entries = document["text_config"]
            layers = tuple(entries["cross_attention_layers"])
            text = _text_config(entries, where, layers)
            vision = _vision_config(document["vision_config"], where)
    except KeyError as error:
        raise InputError(
            f"{where} has no entry {error}: expected a complete configuration; "
            "download the file again."
        ) from None
    entries = document["text_config"] if kind == "mllama" else document
    ends = document.get("eos_token_id") or entries.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    return MllamaConfig(
        text, vision, document.get("image_token_index", 128256), tuple(ends)
    )


def _text_config(entries, where, cross_attention_layers):
    """TextConfig from the entries of a `config.json`."""
    _only(entries, where, hidden_act="silu", attention_bias=False, mlp_bias=False)
    rope = entries.get("rope_parameters") or {}
    scaling = rope or entries.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise InputError(
            f"{where} asks for RoPE of type {kind!r}: expected 'default' or 'llama3'; "
            "choose a Llama 3 model."
        )
    stretched = {
        field.name: scaling[field.name]
        for field in fields(RopeScaling)
        if kind == "llama3"
    }
    default_head_dim = entries["hidden_size"] // entries["num_attention_heads"]
    return TextConfig(
        vocab_size=entries["vocab_size"],
        hidden_size=entries["hidden_size"],
        intermediate_size=entries["intermediate_size"],
        num_hidden_layers=entries["num_hidden_layers"],
        num_attention_heads=entries["num_attention_heads"],
        num_key_value_heads=entries["num_key_value_heads"],
        head_dim=entries.get("head_dim") or default_head_dim,
        rms_norm_eps=entries["rms_norm_eps"],
        rope_scaling=RopeScaling(**stretched) if kind == "llama3" else None,
        rope_theta=rope.get("rope_theta") or entries["rope_theta"],
        max_position_embeddings=entries.get("max_position_embeddings", 131072),
        tie_word_embeddings=entries.get("tie_word_embeddings", False),
        cross_attention_layers=cross_attention_layers,
        num_extra_embeddings=8 if cross_attention_layers else 0,
    )


def _vision_config(entries, where):
    """VisionConfig from the entries of a `config.json`."""
    max_tiles = entries.get("max_num_tiles", 4)
    arrangements = [list(canvas) for canvas in canvases(max_tiles)]
    _only(entries, where, hidden_act="gelu", supported_aspect_ratios=arrangements)
    known = {field.name for field in fields(VisionConfig)}
    given = {name: value for name, value in entries.items() if name in known}
    indices = tuple(given.pop("intermediate_layers_indices"))
    return VisionConfig(**given, intermediate_layers_indices=indices)


def _only(entries, where, **expected):
    """Entries that may be absent, but have only one value that this code implements."""
    for name, value in expected.items():
        if entries.get(name, value) not in (value, None):
            raise InputError(
                f"{where} has {name} {entries[name]!r}: expected {value!r}; "
                "choose a Llama 3 model."
            )


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
