# Generated from notebooks/17_prepended.ipynb: edit there, or here and run `make update`.
"""From the encoder's width to the decoder's, and from many image tokens to few.

Built in chapter 17, notebooks/17_prepended.ipynb. Every projector takes [N, P, D of the
encoder], the patches of a square image row by row, and gives [N, fewer or equally many, D
of the decoder]. Parameter names are those of the models that have it.
"""

import torch
import torch.nn.functional as F
from torch import nn


def patch_side(patches: torch.Tensor) -> int:
    """Patches a side of a square image, from [N, P, D]."""
    count = patches.shape[1]
    side = round(count**0.5)
    if side * side != count:
        raise ValueError(
            f"{count} patches are no square: give those of one image or tile, without "
            "a class token"
        )
    return side


class LinearProjector(nn.Module):
    """One matrix with a bias: PaliGemma's.

    Args:
        size: D of the encoder.
        text_size: D of the decoder.

    Source: transformers' `PaliGemmaMultiModalProjector`.
    """

    def __init__(self, size: int, text_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, text_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[N, P, D] to [N, P, text D]."""
        return self.linear(patches)


class MLPProjector(nn.Module):
    """Two matrices with a GELU between them: LLaVA's.

    Args:
        size: D of the encoder.
        text_size: D of the decoder.

    Source: Liu et al. 2024; transformers' `LlavaMultiModalProjector`.
    """

    def __init__(self, size: int, text_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(size, text_size)
        self.linear_2 = nn.Linear(text_size, text_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[N, P, D] to [N, P, text D]."""
        return self.linear_2(F.gelu(self.linear_1(patches)))


class OnePlusNorm(nn.Module):
    """RMSNorm that multiplies by 1 + w, all of it in fp32: Gemma's.

    Args:
        size: of the last dimension.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.zeros(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D], same dtype."""
        scale = 1 + self.weight.float()
        return F.rms_norm(x.float(), scale.shape, scale, self.eps).to(x.dtype)


class PoolingProjector(nn.Module):
    """The mean of neighbouring patches, a norm, one matrix: Gemma 3's.

    Args:
        size: D of the encoder.
        text_size: D of the decoder.
        num_tokens: how many tokens an image becomes, a square number.
        eps: of the norm.

    Source: transformers' `Gemma3MultiModalProjector`, whose norm multiplies by 1 + w.
    """

    def __init__(
        self, size: int, text_size: int, num_tokens: int, eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.side = round(num_tokens**0.5)
        self.mm_soft_emb_norm = OnePlusNorm(size, eps)
        self.mm_input_projection_weight = nn.Parameter(
            torch.randn(size, text_size) * size**-0.5
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[N, P, D] to [N, num_tokens, text D]."""
        side = patch_side(patches)
        image = patches.transpose(1, 2).unflatten(2, (side, side))  # [N, D, side, side]
        pooled = F.adaptive_avg_pool2d(image, self.side).flatten(2).transpose(1, 2)
        return self.mm_soft_emb_norm(pooled) @ self.mm_input_projection_weight


def pixel_shuffle(patches: torch.Tensor, factor: int) -> torch.Tensor:
    """Join squares of neighbouring patches: nothing is lost, tokens become channels.

    Args:
        patches: [N, P, D], row by row.
        factor: s; the patches a side are a multiple of it.

    Returns:
        [N, P/s², s²·D]; the channels of a token are those of its square, row by row.

    Source: Laurençon et al. 2024; transformers' `Idefics3Connector.pixel_shuffle`.
    """
    side = patch_side(patches)
    if side % factor:
        raise ValueError(f"{side} patches a side are no multiple of {factor}")
    count, few = len(patches), side // factor
    squares = patches.view(count, few, factor, few, factor, -1).transpose(2, 3)
    return squares.reshape(count, few * few, -1)  # [N, P/s², s²·D]


class Projection(nn.Module):
    """A matrix that its checkpoints call `proj`."""

    def __init__(self, size: int, text_size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(size, text_size, bias=False)


class ShuffleProjector(nn.Module):
    """Squares of patches joined, one matrix without a bias: Idefics3's and SmolVLM's.

    Args:
        size: D of the encoder.
        text_size: D of the decoder.
        factor: s, patches a side that become one token.

    Source: transformers' `Idefics3Connector`.
    """

    def __init__(self, size: int, text_size: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.modality_projection = Projection(size * factor**2, text_size)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[N, P, D] to [N, P/s², text D]."""
        return self.modality_projection.proj(pixel_shuffle(patches, self.factor))
