# Generated from notebooks/07_global_vision.ipynb: edit there, or here and run `make update`.
"""The global half of the vision encoder: gated layers, and what the decoder will see.

Built in chapter 7, notebooks/07_global_vision.ipynb. Parameter names are the hub's.
"""

import torch
from torch import nn

from mllama_lite.local_vision import (
    LocalVision,
    TileEmbedding,
    VisionConfig,
    VisionLayer,
    VisionLayers,
)
from mllama_lite.tiles import canvases


class GatedVisionLayer(VisionLayer):
    """A vision layer whose two branches are each scaled by the tanh of a gate.

    A gate of 0 makes the layer the identity.

    Args:
        config: VisionConfig.

    Source: llama_models/llama3/multimodal/model.py, `ImageTransformerBlock(gated=True)`.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.gate_attn = nn.Parameter(torch.zeros(1))
        self.gate_ffn = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, num_real: int) -> torch.Tensor:
        """x [N, padded V, D], real tokens first, to [N, padded V, D]."""
        attended = self.self_attn(self.input_layernorm(x), num_real)
        x = x + self.gate_attn.tanh() * attended
        return x + self.gate_ffn.tanh() * self.mlp(self.post_attention_layernorm(x))


class VisionModel(LocalVision):
    """The whole vision encoder: the local half, then the gated global layers.

    It extends the local half instead of holding it because every checkpoint keeps the
    parameters of both side by side.

    Args:
        config: VisionConfig.

    Source: llama_models/llama3/multimodal/model.py, `VisionEncoder.forward`.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.layernorm_post = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.post_tile_positional_embedding = TileEmbedding(config)
        layers = [GatedVisionLayer(config) for _ in range(config.num_global_layers)]
        self.global_transformer = VisionLayers(layers)

    def forward(  # type: ignore[override]  # the whole counts the tiles itself
        self, pixel_values: torch.Tensor, aspect_ratio_ids: torch.Tensor
    ) -> torch.Tensor:
        """Encode images.

        Args:
            pixel_values: [N, K, 3, S, S] from `image_to_tiles`.
            aspect_ratio_ids: int [N], 1 to 8.

        Returns:
            [N, K, P, vision_output_dim]; of an image's K tiles only the valid ones mean
            anything. Images with equally many tiles are encoded together.
        """
        arrangements = canvases(self.config.max_num_tiles)
        counts = [0] + [rows * columns for rows, columns in arrangements]
        num_tiles = [counts[id] for id in aspect_ratio_ids.tolist()]
        if len(set(num_tiles)) == 1:
            return self.encode(pixel_values, aspect_ratio_ids, num_tiles[0])
        parts, places = [], []
        for count in sorted(set(num_tiles)):
            same = [i for i, number in enumerate(num_tiles) if number == count]
            parts.append(self.encode(pixel_values[same], aspect_ratio_ids[same], count))
            places += same
        return torch.cat(parts)[torch.tensor(places).argsort()]

    def encode(
        self, pixel_values: torch.Tensor, aspect_ratio_ids: torch.Tensor, num_tiles: int
    ) -> torch.Tensor:
        """`forward` for images that all have `num_tiles` valid tiles."""
        x, states = super().forward(pixel_values, aspect_ratio_ids, num_tiles)
        x = self.layernorm_post(x)
        x = self.post_tile_positional_embedding(x, aspect_ratio_ids, num_tiles)
        x, _ = self.in_layers(self.global_transformer, x, num_tiles)
        # The kept states are interleaved: channel 0 of each, then channel 1 of each, ...
        kept = torch.stack(states, dim=-1).flatten(-2)  # [N, K, padded P, 5·D]
        return torch.cat([x, kept], dim=-1)[:, :, : self.config.num_patches]
