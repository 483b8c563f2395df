# Generated from notebooks/17_prepended.ipynb: edit there, or here and run `make update`.
"""Models of others whose images are tokens, read from their folders.

Built in chapter 17, notebooks/17_prepended.ipynb. LLaVA with SigLIP and a Llama, PaliGemma,
Idefics3 and SmolVLM: what their configurations say, what their tensors are called, in one
file or in shards. As in chapter 9, nothing is loaded before every name and shape is right.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.checkpoints.configs import (
    DEPTH,
    EPSILON,
    HEADS,
    TEXT_FIELDS,
    TOKEN,
    WIDTH,
    config_from_hub,
)
from mllama_lite.checkpoints.folders import find_files
from mllama_lite.checkpoints.tensor_files import StoredTensor, read_safetensors_header
from mllama_lite.decoder import MLP, DecoderLayer, LanguageModel, TextConfig
from mllama_lite.errors import InputError, shown
from mllama_lite.families.prepended import Prepended, PrependedConfig
from mllama_lite.families.projectors import (
    LinearProjector,
    MLPProjector,
    ShuffleProjector,
)
from mllama_lite.families.siglip import SiglipVision, SiglipVisionConfig
from mllama_lite.files import (
    ANY_OBJECT,
    as_path,
    check_fields,
    check_relations,
    maybe,
    one_of,
    read_json,
    whole,
)


DECODER = "language_model."
KINDS = ("llava", "paligemma", "idefics3", "smolvlm")

OUTER_FIELDS = {
    "text_config": ANY_OBJECT,
    "vision_config": ANY_OBJECT,
    "image_token_id": maybe(TOKEN),
    "image_token_index": maybe(TOKEN),
    "scale_factor": maybe(whole(1, 64)),
    "vision_feature_layer": maybe(whole(-512, -1)),
    "vision_feature_select_strategy": maybe(one_of("full")),
    "projector_hidden_act": maybe(one_of("gelu")),
    "multimodal_projector_bias": maybe(one_of(True)),
}

SIGLIP_FIELDS = {
    "model_type": one_of("siglip_vision_model", "idefics3_vision", "smolvlm_vision"),
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_channels": maybe(one_of(3)),
    "image_size": whole(1, 4096),
    "patch_size": whole(1, 4096),
    "layer_norm_eps": maybe(EPSILON),
    "hidden_act": maybe(one_of("gelu_pytorch_tanh")),
}

GEMMA_FIELDS = TEXT_FIELDS | {
    "rms_norm_eps": maybe(EPSILON),
    # Gemma's first files said "gelu" and meant the one that a tanh approximates.
    "hidden_act": maybe(one_of("gelu_pytorch_tanh", "gelu")),
}


class GemmaMLP(MLP):
    """The gated MLP with a GELU, which a tanh approximates, in the place of SiLU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]."""
        gate = F.gelu(self.gate_proj(x), approximate="tanh")
        return self.down_proj(gate * self.up_proj(x))


def gemma_layer(config: TextConfig, index: int) -> DecoderLayer:
    """A layer of Gemma's decoder; see `TextModel`."""
    layer = DecoderLayer(config, index)
    layer.mlp = GemmaMLP(config.hidden_size, config.intermediate_size)
    return layer


def prepended_model(
    kind: str, document: dict[str, Any], where: Path | str
) -> Prepended:
    """The model that a `config.json` describes, with first values.

    Args:
        kind: one of KINDS.
        document: the parsed file.
        where: what to call the file in an error.

    Raises:
        InputError: an entry that is missing, out of range, or that this code has not.
    """
    given = check_fields(document, OUTER_FIELDS, where)
    within = "vision_config."
    seen = check_fields(given["vision_config"], SIGLIP_FIELDS, where, within)
    seen.pop("model_type")
    seen.pop("hidden_act", None)
    depth = seen["num_hidden_layers"]
    if kind == "llava":
        # -1 is the last layer's output, before the last norm; -2 the one before.
        seen["num_hidden_layers"] += given.get("vision_feature_layer", -2) + 1
        strategy = given.get("vision_feature_select_strategy")
        relations = [
            (
                strategy == "full",
                "vision_feature_select_strategy",
                '"full": SigLIP has no class token that "default" could drop',
            ),
            (seen["num_hidden_layers"] > 0, "vision_feature_layer", f"above -{depth}"),
        ]
        check_relations(
            given | {"vision_feature_select_strategy": strategy}, relations, where
        )
    vision = SiglipVisionConfig(**seen)
    entries, gemma = given["text_config"], kind == "paligemma"
    if gemma:
        text = _gemma(check_fields(entries, GEMMA_FIELDS, where, "text_config."), where)
    else:
        text = config_from_hub({"model_type": "llama"} | entries, where).text
    image = given.get("image_token_id", given.get("image_token_index"))
    known = (
        image is not None and image < text.vocab_size,
        "image_token_id",
        f"a row of the embedding, below {text.vocab_size}",
    )
    check_relations(given | {"image_token_id": image}, [known], where)
    factor, sizes = given.get("scale_factor", 2), (vision.hidden_size, text.hidden_size)
    projector: nn.Module
    if kind == "llava":
        projector, tokens = MLPProjector(*sizes), vision.grid**2
    elif gemma:
        projector, tokens = LinearProjector(*sizes), vision.grid**2
    else:
        whole_squares = (
            vision.grid % factor == 0,
            "scale_factor",
            f"a divisor of the {vision.grid} patches a side",
        )
        check_relations(given, [whole_squares], where)
        projector = ShuffleProjector(*sizes, factor)
        tokens = (vision.grid // factor) ** 2
    ends = entries.get("eos_token_id")
    ends = tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)
    return Prepended(
        PrependedConfig(text, vision, image or 0, tokens, gemma, ends),
        SiglipVision(vision, pooled=False, normed=kind != "llava"),
        projector,
        LanguageModel(text, gemma_layer) if gemma else None,
    )


def _gemma(given: dict[str, Any], where: Path | str) -> TextConfig:
    """Gemma's sizes as a TextConfig; the head is a parameter of its own, see `convert`."""
    theta = given.get("rope_parameters", {}).get("rope_theta", given.get("rope_theta"))
    return TextConfig(
        vocab_size=given["vocab_size"],
        hidden_size=given["hidden_size"],
        intermediate_size=given["intermediate_size"],
        num_hidden_layers=given["num_hidden_layers"],
        num_attention_heads=given["num_attention_heads"],
        num_key_value_heads=given["num_key_value_heads"],
        head_dim=given.get("head_dim", 256),
        rms_norm_eps=given.get("rms_norm_eps", 1e-6),
        rope_theta=10000.0 if theta is None else theta,
        rope_scaling=None,
        max_position_embeddings=given.get("max_position_embeddings", 8192),
        cross_attention_layers=(),
        num_extra_embeddings=0,
    )


def own_name(name: str) -> str | None:
    """What a tensor of such a checkpoint is called here; None if no model needs it.

    Files written by transformers 4 and 5 are both understood, and so are the names that
    models have in memory.
    """
    name = name.removeprefix("model.")
    name = re.sub(r"^vision_(tower|model)\.(vision_model\.)?", "vision_tower.", name)
    name = re.sub(r"^connector\.", "multi_modal_projector.", name)
    name = re.sub(r"^text_model\.", "language_model.", name)
    name = re.sub(r"^lm_head\.", "language_model.lm_head.", name)
    if name.startswith("language_model.") and ".lm_head." not in name:
        rest = name.removeprefix("language_model.").removeprefix("model.")
        name = f"language_model.model.{rest}"
    unused = name.startswith("vision_tower.head.") or name.endswith("position_ids")
    return None if unused or name.endswith("rotary_emb.inv_freq") else name


def gemma_conversion(
    name: str, size: int
) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What makes a stored tensor of Gemma's one of a Llama's; None if nothing does.

    Gemma's norms multiply by 1 + w, and its embedding by √D, though not the head, which is
    stored as the same matrix, and not what an image puts among the tokens.

    Args:
        name: of the parameter, here.
        size: D.
    """
    if name.endswith("norm.weight") and name.startswith("language_model."):
        return lambda tensor: 1 + tensor.float()
    if name.endswith("embed_tokens.weight"):
        return lambda tensor: tensor.float() * size**0.5
    return None


def load_prepended(folder: Path | str, dtype: torch.dtype = torch.float32) -> Prepended:
    """Load such a model from a folder of the hub's.

    Args:
        folder: path, with `config.json` and `model.safetensors` or its shards.
        dtype: of the parameters. PaliGemma's are best in fp32: 1 + w and √D · w are
            rounded otherwise.

    Returns:
        Prepended, in evaluation mode. Its pixel values are those of that model's own
        processor.

    Raises:
        InputError: another kind of model; see `prepended_model`, `find_files` and
            `read_safetensors_header`; tensors that are missing, unknown, there twice, or
            of another shape.
    """
    folder = as_path(folder, "a model's folder")
    where = folder / "config.json"
    document = read_json(where)
    kind = document.get("model_type")
    if kind not in KINDS:
        raise InputError(
            f"{where} has model_type {shown(kind)}: expected one of {', '.join(KINDS)}; "
            "choose a model whose images are tokens."
        )
    layout, files = find_files(folder)
    if layout != "hub":
        raise InputError(
            f"{folder} has {files[0].name}: expected model.safetensors or its shards; "
            "download the files of the hub."
        )
    model = prepended_model(kind, document, where)
    parameters = dict(model.named_parameters())
    stored, unknown = _stored(files, model)
    head, embedding = f"{DECODER}lm_head.weight", f"{DECODER}model.embed_tokens.weight"
    if kind == "paligemma" and embedding in stored:
        stored.setdefault(head, stored[embedding])  # stored once, or twice
    missing = [name for name in parameters if name not in stored]
    for names, problem in ((missing, "lacks"), (unknown, "has unknown")):
        if names:
            raise InputError(
                f"{folder} {problem} {len(names)} tensors, the first {names[0]}: "
                "expected exactly those of its configuration; download the model again."
            )
    for name, parameter in parameters.items():
        tensor = stored[name]
        if tensor.shape != tuple(parameter.shape):
            raise InputError(
                f"{name} in {tensor.file} has shape {list(tensor.shape)}: expected "
                f"{list(parameter.shape)} from the configuration; use the configuration "
                "and all files that came with these weights."
            )
    size = model.config.text.hidden_size
    with torch.no_grad():
        for name, parameter in parameters.items():
            convert = gemma_conversion(name, size) if kind == "paligemma" else None
            value = stored[name].read()
            parameter.data = (convert(value) if convert else value).to(dtype)
    return model.eval()


def _stored(
    files: list[Path], model: Prepended
) -> tuple[dict[str, StoredTensor], list[str]]:
    """Tensors by our names, and the names of those that nothing here is called."""
    found: dict[str, StoredTensor] = {}
    unknown = []
    known = dict(model.named_parameters())
    # LLaVA's checkpoints hold the layers and the norm behind the one that is taken.
    takes_less = isinstance(model.vision_tower.post_layernorm, nn.Identity)
    behind = r"vision_tower\.(post_layernorm|encoder\.layers\.\d+)\."
    for file in files:
        for stored_name, tensor in read_safetensors_header(file).items():
            name = own_name(stored_name)
            if name is None:
                continue
            if name in found:
                raise InputError(
                    f"{stored_name} is in {found[name].file} and again in {file}: "
                    "expected each tensor once; download the model again."
                )
            if name in known:
                found[name] = tensor
            elif not (takes_less and re.match(behind, name)):
                unknown.append(stored_name)
    return found, unknown
