"""The whole model: vision encoder, projector, decoder with cross-attention.

Built in chapter 9, notebooks/09_checkpoint.ipynb. Parameter names are those of the
hub's files, so that a state dict fits without renaming.
"""

from dataclasses import dataclass, fields

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mllama_lite.cross_attention import CrossAttentionLayer, VisionMemory
from mllama_lite.decoder import LanguageModel, TextConfig
from mllama_lite.errors import InputError
from mllama_lite.global_vision import VisionModel
from mllama_lite.local_vision import VisionConfig
from mllama_lite.rope import RopeScaling
from mllama_lite.tiles import canvases


@dataclass(frozen=True)
class MllamaConfig:
    """Sizes of the whole model; the defaults are those of 11B-Vision-Instruct.

    Attributes:
        text: TextConfig.
        vision: VisionConfig, or None for a text-only Llama.
        image_token_index: the model's id of an image.
        eos_token_ids: ids that end an answer when there is no tokenizer to say so.
    """

    text: TextConfig = TextConfig()
    vision: VisionConfig | None = VisionConfig()
    image_token_index: int = 128256
    eos_token_ids: tuple[int, ...] = (128001, 128008, 128009)


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


class Mllama(nn.Module):
    """Llama 3.2 Vision, or with `config.vision` None a text-only Llama 3.

    Args:
        config: MllamaConfig.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        if config.vision is not None:
            self.vision_model = VisionModel(config.vision)
            width = config.vision.vision_output_dim
            self.multi_modal_projector = nn.Linear(width, config.text.hidden_size)
        self.language_model = LanguageModel(config.text, CrossAttentionLayer)

    @property
    def dtype(self):
        """dtype of the parameters."""
        return self.language_model.lm_head.weight.dtype

    @property
    def device(self):
        """device of the parameters."""
        return self.language_model.lm_head.weight.device

    @property
    def cross_attention_layers(self):
        """The layers that look at images, in order."""
        layers = self.language_model.model.layers
        return [layers[i] for i in self.config.text.cross_attention_layers]

    def encode_images(self, tiles):
        """Images to the tokens that cross-attention reads.

        Args:
            tiles: list of N Tiles.

        Returns:
            list of N tensors [V_i, D]: the projected tokens of the valid tiles alone;
            no text token ever sees those of the others.
        """
        pixel_values = torch.stack([image.pixel_values for image in tiles])
        ids = torch.tensor(
            [image.aspect_ratio_id for image in tiles], device=self.device
        )
        features = self.vision_model(pixel_values.to(self.device, self.dtype), ids)
        return [
            self.multi_modal_projector(image[: one.num_tiles].flatten(0, 1))
            for image, one in zip(features, tiles)
        ]

    def see(self, rows):
        """Encode all images of a batch and compute their keys and values, once.

        Args:
            rows: for each row of the batch, the list of its Tiles, maybe empty.

        Returns:
            VisionMemory, or None if no row has an image.
        """
        if not any(rows):
            return None
        encoded = iter(self.encode_images([one for row in rows for one in row]))
        images = [[next(encoded) for _ in row] for row in rows]
        return VisionMemory.of(self.cross_attention_layers, images)

    def forward(
        self, tokens, cache=None, positions=None, mask=None, vision=None, only=None
    ):
        """Logits of the next token; see `LanguageModel.forward`.

        Args:
            tokens: int [B, T], images as `image_token_index`.
            vision: VisionContext of `VisionMemory.context`; None without images.

        Returns:
            fp32 [B, T, W], or [B, 1, W] with `only`.
        """
        return self.language_model(tokens, cache, positions, mask, vision, only)


class _SkipInitialValues(TorchFunctionMode):
    """Makes the functions of torch.nn.init do nothing."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def empty_model(config):
    """A model of names and shapes alone, on the meta device: nothing is computed.

    Args:
        config: MllamaConfig, of any size.

    Returns:
        Mllama.
    """
    with torch.device("meta"), _SkipInitialValues():
        return Mllama(config)
