# Generated from notebooks/02_rope.ipynb: edit there, or here and run `make update`.
"""Rotary position embedding: where a token stands, told by turning its vectors.

Built in chapter 2, notebooks/02_rope.ipynb. The package uses the half-split layout (the
hub's); Meta's checkpoints are interleaved and are permuted while they load.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RopeScaling:
    """The "llama3" stretching of RoPE frequencies for contexts longer than trained.

    Field names are those of the hub's `config.json` (`rope_scaling`). Llama 3.1 and the
    11B and 90B Vision models have factor 8, Llama 3.2 1B and 3B have factor 32.
    """

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192


def rope_frequencies(
    head_dim: int, theta: float = 500000.0, scaling: RopeScaling | None = None
) -> torch.Tensor:
    """How many radians a pair of dimensions turns from one position to the next.

    Args:
        head_dim: E, even.
        theta: base of the geometric series.
        scaling: a RopeScaling, or None for the plain series.

    Returns:
        fp32 [E/2], radians a position, fastest first.

    Source: Su et al. 2021; llama_models/llama3/model.py, `precompute_freqs_cis` and
    `apply_scaling`.
    """
    frequencies = 1.0 / theta ** (torch.arange(0, head_dim, 2).float() / head_dim)
    if scaling is None:
        return frequencies
    wavelength = 2 * torch.pi / frequencies  # positions a turn
    turns = scaling.original_max_position_embeddings / wavelength
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 0: divide by factor, 1: leave
    return (1 - keep) * frequencies / scaling.factor + keep * frequencies


def rope_cos_sin(
    frequencies: torch.Tensor, positions: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every pair's angle at every position.

    Args:
        frequencies: fp32 [E/2], radians a position.
        positions: int [...], positions counted from 0.

    Returns:
        (cos, sin), each fp32 [..., E/2].
    """
    angles = positions[..., None].float() * frequencies  # [..., E/2]
    return angles.cos(), angles.sin()


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn every pair (i, i + E/2) of a head by its angle: the half-split layout.

    Args:
        x: [B, H, T, E], queries or keys.
        cos, sin: fp32, broadcastable to [B, H, T, E/2].

    Returns:
        [B, H, T, E] in the dtype of x. The turning itself is done in fp32.
    """
    first, second = x.float().chunk(2, dim=-1)  # each [B, H, T, E/2]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(turned, dim=-1).to(x.dtype)  # [B, H, T, E]


def apply_rope_interleaved(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """Turn every pair (2i, 2i + 1) of a head by its angle: Meta's layout.

    Args and returns as `apply_rope`.

    Source: llama_models/llama3/model.py, `apply_rotary_emb`.
    """
    pairs = x.float().unflatten(-1, (-1, 2))  # [B, H, T, E/2, 2]
    even, odd = pairs.unbind(-1)
    turned = (even * cos - odd * sin, odd * cos + even * sin)
    return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)  # [B, H, T, E]


def to_half_split(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder the rows of a query or key projection from interleaved to half-split.

    Args:
        weight: [H·E, D] (or any trailing shape), as Meta stores it.
        num_heads: H for queries, G for keys.

    Returns:
        [H·E, D]: even rows of each head first, then the odd ones.
    """
    rows = weight.unflatten(0, (num_heads, -1, 2))  # [H, E/2, 2, D]
    return rows.transpose(1, 2).reshape(weight.shape)


def to_interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """The inverse of `to_half_split`."""
    rows = weight.unflatten(0, (num_heads, 2, -1))  # [H, 2, E/2, D]
    return rows.transpose(1, 2).reshape(weight.shape)
