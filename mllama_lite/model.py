# Generated from notebooks/09_checkpoint.ipynb: edit there, or here and run `make update`.
"""The whole model: vision encoder, projector, decoder with cross-attention.

Built in chapter 9, notebooks/09_checkpoint.ipynb. Parameter names are those of the
hub's files, so that a state dict fits without renaming.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from mllama_lite.attention import KVCache
from mllama_lite.cross_attention import (
    CrossAttentionLayer,
    VisionCache,
    VisionContext,
    make_layer,
    visible_ranges,
)
from mllama_lite.decoder import LanguageModel, TextConfig
from mllama_lite.global_vision import VisionModel
from mllama_lite.local_vision import VisionConfig
from mllama_lite.tiles import Tiles


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


class Mllama(nn.Module):
    """Llama 3.2 Vision, or with `config.vision` None a text-only Llama 3.

    Args:
        config: MllamaConfig.
    """

    def __init__(self, config: MllamaConfig) -> None:
        super().__init__()
        self.config = config
        if config.vision is not None:
            self.vision_model = VisionModel(config.vision)
            width = config.vision.vision_output_dim
            self.multi_modal_projector = nn.Linear(width, config.text.hidden_size)
        self.language_model = LanguageModel(config.text, make_layer)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of what runs through the layers: that of the last norm."""
        return self.language_model.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """device of the parameters."""
        return self.language_model.model.norm.weight.device

    @property
    def cross_attention_layers(self) -> list[CrossAttentionLayer]:
        """The layers that look at images, in order."""
        layers: Any = self.language_model.model.layers  # of any modules
        return [layers[i] for i in self.config.text.cross_attention_layers]

    def encode_images(self, tiles: Sequence[Tiles]) -> list[torch.Tensor]:
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

    def vision_cache(self, rows: Sequence[Sequence[Tiles]]) -> VisionCache | None:
        """Encode all images of a batch and compute their keys and values, once.

        Args:
            rows: for each row of the batch, the list of its Tiles, maybe empty.

        Returns:
            VisionCache, or None if no row has an image.
        """
        if not any(rows):
            return None
        encoded = iter(self.encode_images([one for row in rows for one in row]))
        images = [[next(encoded) for _ in row] for row in rows]
        return VisionCache.from_images(self.cross_attention_layers, images)

    def vision_context(
        self, rows: Sequence[Sequence[int]], tiles: Sequence[Sequence[Tiles]]
    ) -> VisionContext | None:
        """What the tokens of whole rows see: images encoded, and who looks at which.

        Args:
            rows: list of B lists of token ids, images as `image_token_index`.
            tiles: for each row, the list of its Tiles, maybe empty.

        Returns:
            VisionContext for T tokens, the longest row's; None without images.
        """
        cache = self.vision_cache(tiles)
        if cache is None:
            return None
        ranges = [visible_ranges(row, self.config.image_token_index) for row in rows]
        return cache.context(ranges, [0] * len(rows), max(map(len, rows)))

    def forward(
        self,
        tokens: torch.Tensor | None,
        cache: KVCache | None = None,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        vision: VisionContext | None = None,
        logits_at: torch.Tensor | None = None,
        embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of the next token; see `LanguageModel.forward`.

        Args:
            tokens: int [B, T], images as `image_token_index`.
            vision: VisionContext, see `vision_context`; None without images.

        Returns:
            fp32 [B, T, W], or [B, 1, W] with `logits_at`.
        """
        return self.language_model(
            tokens, cache, positions, mask, vision, logits_at, embeddings
        )


class _SkipInitialValues(TorchFunctionMode):
    """Makes the functions of torch.nn.init do nothing."""

    def __torch_function__(
        self, function: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(function, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return function(*args, **kwargs)


def empty_model(config: MllamaConfig) -> Mllama:
    """A model of names and shapes alone, on the meta device: nothing is computed.

    Args:
        config: MllamaConfig, of any size.

    Returns:
        Mllama.
    """
    with torch.device("meta"), _SkipInitialValues():
        return Mllama(config)
