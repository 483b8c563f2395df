# Generated from notebooks/06_local_vision.ipynb: edit there, or here and run `make update`.
"""The local half of the vision encoder: tiles to tokens, through 32 layers.

Built in chapter 6, notebooks/06_local_vision.ipynb. Parameter names are the hub's.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.tiles import canvases


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision encoder; the defaults are 11B-Instruct's, names `config.json`'s."""

    hidden_size: int = 1280
    attention_heads: int = 16
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_global_layers: int = 8
    image_size: int = 560
    patch_size: int = 14
    num_channels: int = 3
    max_num_tiles: int = 4
    norm_eps: float = 1e-5
    intermediate_layers_indices: tuple[int, ...] = (3, 7, 15, 23, 30)

    @property
    def num_patches(self) -> int:
        """P: patches of a tile plus the class token (1,601 at 560, 1,025 at 448)."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def vision_output_dim(self) -> int:
        """Width of a vision token: the final state and the states kept on the way."""
        return self.hidden_size * (1 + len(self.intermediate_layers_indices))

    @property
    def num_aspect_ratios(self) -> int:
        """Rows of the tables by aspect_ratio_id: the canvases, and 0 for no image."""
        return len(canvases(self.max_num_tiles)) + 1


def only_valid_tiles(places: torch.Tensor, num_tiles: int) -> torch.Tensor:
    """Zero the vectors [N, K, ...] of tiles that the canvas does not have.

    Checkpoints hold zeros there already; a table that is being trained must not move.
    """
    valid = torch.arange(places.shape[1], device=places.device) < num_tiles  # [K]
    return places * valid[:, None, None]


class TileEmbedding(nn.Module):
    """A gated vector for each tile's place on its canvas, added to all its tokens.

    Args:
        config: VisionConfig.

    Source: llama_models/llama3/multimodal/model.py, `TilePositionEmbedding`; the table
    by aspect ratio is the hub's layout of the same numbers.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.shape = (config.max_num_tiles, 1, config.hidden_size)
        width = config.max_num_tiles * config.hidden_size
        self.embedding = nn.Embedding(config.num_aspect_ratios, width)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(
        self, x: torch.Tensor, aspect_ratio_ids: torch.Tensor, num_tiles: int
    ) -> torch.Tensor:
        """x [N, K, P, D], ids int [N], valid tiles of each image, to [N, K, P, D]."""
        places = self.embedding(aspect_ratio_ids).unflatten(
            -1, self.shape
        )  # [N, K, 1, D]
        return x + only_valid_tiles(places, num_tiles) * self.gate.tanh()


class PositionEmbedding(nn.Module):
    """Position inside a tile for every tile, and on the canvas for the valid ones.

    One gate divides between the two: (1 - tanh gate) and tanh gate.

    Args:
        config: VisionConfig.

    Source: llama_models/llama3/multimodal/model.py,
    `VisionEncoder.apply_positional_embedding`.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.shape = (config.max_num_tiles, config.num_patches, config.hidden_size)
        self.embedding = nn.Parameter(
            torch.zeros(config.num_patches, config.hidden_size)
        )
        width = config.max_num_tiles * config.num_patches * config.hidden_size
        self.tile_embedding = nn.Embedding(config.num_aspect_ratios, width)
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(
        self, x: torch.Tensor, aspect_ratio_ids: torch.Tensor, num_tiles: int
    ) -> torch.Tensor:
        """x [N, K, P, D], ids int [N], valid tiles of each image, to [N, K, P, D]."""
        gate = self.gate.tanh()
        x = x + self.embedding * (1 - gate)
        places = self.tile_embedding(aspect_ratio_ids).unflatten(
            -1, self.shape
        )  # [N, K, P, D]
        return x + only_valid_tiles(places, num_tiles) * gate


def padded_length(num_patches: int) -> int:
    """P rounded up to a multiple of 8 (1,608 at 560 pixels, 1,032 at 448).

    Source: llama_models/llama3/multimodal/encoder_utils.py,
    `expand_num_tokens_to_mult8`.
    """
    return -(-num_patches // 8) * 8


def real_tokens_first(
    num_tiles: int, max_tiles: int, num_patches: int
) -> tuple[torch.Tensor, int]:
    """Order of an image's tokens in which the real ones come before the padding.

    Padding are the tokens that fill a tile up to a multiple of 8, and all tokens of
    tiles that the canvas does not have.

    Args:
        num_tiles: valid tiles.
        max_tiles: K.
        num_patches: P.

    Returns:
        (order, num_real): int [K·padded P], a permutation of the flattened tokens, and
        num_tiles·P.
    """
    real = torch.zeros(max_tiles, padded_length(num_patches), dtype=torch.bool)
    real[:num_tiles, :num_patches] = True
    order = real.flatten().int().argsort(descending=True, stable=True)
    return order, num_tiles * num_patches


class VisionAttention(nn.Module):
    """Attention among all tokens of an image, without bias and without RoPE.

    Args:
        config: VisionConfig.

    Source: llama_models/llama3/multimodal/model.py, `ImageAttention`.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.head_dim = size // config.attention_heads
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, x: torch.Tensor, num_real: int) -> torch.Tensor:
        """Attention in which padding does not look at padding.

        Meta's mask forbids only that: real tokens do look at padding. So no mask is
        needed: the queries are taken in two parts, and the second gets fewer keys.

        Args:
            x: [N, padded V, D], the `num_real` real tokens first, then padding.
            num_real: how many tokens are real; the same for all N.

        Returns:
            [N, padded V, D].
        """
        heads = (-1, self.head_dim)
        # each [N, H, padded V, E]
        query = self.q_proj(x).unflatten(-1, heads).transpose(1, 2)
        key = self.k_proj(x).unflatten(-1, heads).transpose(1, 2)
        value = self.v_proj(x).unflatten(-1, heads).transpose(1, 2)
        real, padding = query[:, :, :num_real], query[:, :, num_real:]
        key_of_real, value_of_real = key[:, :, :num_real], value[:, :, :num_real]
        output = F.scaled_dot_product_attention(real, key, value)  # [N, H, real, E]
        rest = F.scaled_dot_product_attention(padding, key_of_real, value_of_real)
        output = torch.cat([output.transpose(1, 2), rest.transpose(1, 2)], dim=1)
        return self.o_proj(output.flatten(2))  # [N, padded V, D]


class VisionMLP(nn.Module):
    """Two linear maps with bias and the exact (erf) GELU between them.

    Args:
        config: VisionConfig.

    Source: llama_models/llama3/multimodal/model.py, `ImageFeedForward`.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class VisionLayer(nn.Module):
    """LayerNorm, attention, residual; LayerNorm, MLP, residual.

    Args:
        config: VisionConfig.

    Source: llama_models/llama3/multimodal/model.py, `ImageTransformerBlock`.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.self_attn = VisionAttention(config)
        self.post_attention_layernorm = nn.LayerNorm(
            config.hidden_size, config.norm_eps
        )
        self.mlp = VisionMLP(config)

    def forward(self, x: torch.Tensor, num_real: int) -> torch.Tensor:
        """x [N, padded V, D], real tokens first, to [N, padded V, D]."""
        x = x + self.self_attn(self.input_layernorm(x), num_real)
        return x + self.mlp(self.post_attention_layernorm(x))


class VisionLayers(nn.Module):
    """A stack of layers, which is called `transformer` in every checkpoint.

    Args:
        layers: list of modules.
    """

    def __init__(self, layers: Iterable[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(
        self, x: torch.Tensor, num_real: int, keep: Collection[int] = ()
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run all layers.

        Args:
            x: [N, padded V, D], real tokens first.
            num_real: see `VisionAttention.forward`.
            keep: indices of layers whose *input* is wanted.

        Returns:
            (x [N, padded V, D], list of the kept inputs, each of that shape).
        """
        kept = []
        for i, layer in enumerate(self.layers):
            if i in keep:
                kept.append(x)
            x = layer(x, num_real)
        return x, kept


class LocalVision(nn.Module):
    """Patches, embeddings and the local layers.

    Args:
        config: VisionConfig.

    Source: llama_models/llama3/multimodal/model.py, `VisionEncoder`.
    """

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        size, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.num_channels, size, patch, patch, bias=False
        )
        self.class_embedding = nn.Parameter(torch.zeros(size))
        self.pre_tile_positional_embedding = TileEmbedding(config)
        self.gated_positional_embedding = PositionEmbedding(config)
        self.layernorm_pre = nn.LayerNorm(size, config.norm_eps)
        layers = [VisionLayer(config) for _ in range(config.num_hidden_layers)]
        self.transformer = VisionLayers(layers)

    def embed(
        self, pixel_values: torch.Tensor, aspect_ratio_ids: torch.Tensor, num_tiles: int
    ) -> torch.Tensor:
        """Pixels to the tokens that enter the first layer.

        Args:
            pixel_values: [N, K, 3, S, S].
            aspect_ratio_ids: int [N], 1 to 8, all with the same number of tiles.
            num_tiles: valid tiles of each image.

        Returns:
            [N, K, padded P, D]: class token, patches, zeros up to a multiple of 8.
        """
        patches = self.patch_embedding(
            pixel_values.flatten(0, 1)
        )  # [N·K, D, grid, grid]
        patches = patches.flatten(2).transpose(1, 2)  # [N·K, P - 1, D]
        x = patches.unflatten(0, pixel_values.shape[:2])  # [N, K, P - 1, D]
        x = self.pre_tile_positional_embedding(x, aspect_ratio_ids, num_tiles)
        class_token = self.class_embedding.expand(*x.shape[:2], 1, -1)  # [N, K, 1, D]
        x = torch.cat([class_token, x], dim=2)  # [N, K, P, D]
        x = self.gated_positional_embedding(x, aspect_ratio_ids, num_tiles)
        x = self.layernorm_pre(x)
        missing = padded_length(x.shape[2]) - x.shape[2]
        return F.pad(x, (0, 0, 0, missing))  # [N, K, padded P, D]

    def in_layers(
        self,
        layers: VisionLayers,
        x: torch.Tensor,
        num_tiles: int,
        keep: Collection[int] = (),
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Run a stack of layers over images with equally many valid tiles.

        Args:
            layers: VisionLayers.
            x: [N, K, padded P, D] from `embed`.
            num_tiles: valid tiles of each image.
            keep: see `VisionLayers.forward`.

        Returns:
            (x, states): [N, K, padded P, D] and the list of kept inputs, same shape.
        """
        shape = x.shape[1:3]
        order, num_real = real_tokens_first(
            num_tiles, shape[0], self.config.num_patches
        )
        order = order.to(x.device)
        x, kept = layers(x.flatten(1, 2)[:, order], num_real, keep)
        back = order.argsort()
        x, *kept = (y[:, back].unflatten(1, shape) for y in (x, *kept))
        return x, kept

    def forward(
        self, pixel_values: torch.Tensor, aspect_ratio_ids: torch.Tensor, num_tiles: int
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Embed images and run the local layers; arguments as `embed`.

        Returns:
            (x, states): the last state [N, K, padded P, D] and those that entered the
            layers `intermediate_layers_indices`, same shape.
        """
        x = self.embed(pixel_values, aspect_ratio_ids, num_tiles)
        keep = self.config.intermediate_layers_indices
        return self.in_layers(self.transformer, x, num_tiles, keep)
