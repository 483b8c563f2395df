# Generated from notebooks/17_prepended.ipynb: edit there, or here and run `make update`.
"""SigLIP: an image encoder and a text encoder that learn from pairs, with a sigmoid.

Built in chapter 17, notebooks/17_prepended.ipynb. Parameter names are those of the hub's
`SiglipModel`, so that a state dict fits without renaming.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.errors import InputError


@dataclass(frozen=True)
class SiglipVisionConfig:
    """Sizes of an image encoder; the defaults are the base model's with patches of 16.

    Names are `config.json`'s. There is no class token: an image is its patches.
    `max_num_tiles` is this package's word: into how many tiles an image may be cut before
    each is encoded by itself.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    num_channels: int = 3
    image_size: int = 224
    patch_size: int = 16
    layer_norm_eps: float = 1e-6
    max_num_tiles: int = 1

    def __post_init__(self) -> None:
        check_heads(self.hidden_size, self.num_attention_heads)
        if self.patch_size > self.image_size:
            raise InputError(
                f"The configuration cuts an image of {self.image_size} pixels into "
                f"patches of {self.patch_size}: expected smaller ones; correct it."
            )

    @property
    def grid(self) -> int:
        """Patches a side; pixels that fill no patch are cut off."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class SiglipTextConfig:
    """Sizes of a text encoder; the defaults are the base model's."""

    vocab_size: int = 32000
    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    max_position_embeddings: int = 64
    layer_norm_eps: float = 1e-6
    projection_size: int = 768

    def __post_init__(self) -> None:
        check_heads(self.hidden_size, self.num_attention_heads)


def check_heads(size: int, heads: int) -> None:
    """Refuse heads that do not divide a width."""
    if size % heads:
        raise InputError(
            f"The configuration has hidden_size {size} and {heads} heads: expected a "
            "multiple; correct it."
        )


class SiglipAttention(nn.Module):
    """Every token attends to every token; with biases, without a mask.

    Args:
        size: D.
        heads: H.
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.head_dim = size // heads
        self.q_proj = nn.Linear(size, size)
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, P, D] to [N, P, D]."""
        heads = (-1, self.head_dim)
        query = self.q_proj(x).unflatten(-1, heads).transpose(1, 2)  # [N, H, P, E]
        key = self.k_proj(x).unflatten(-1, heads).transpose(1, 2)
        value = self.v_proj(x).unflatten(-1, heads).transpose(1, 2)
        output = F.scaled_dot_product_attention(query, key, value)  # [N, H, P, E]
        return self.out_proj(output.transpose(1, 2).flatten(2))


class SiglipMLP(nn.Module):
    """Two linear maps with the GELU that a tanh approximates between them.

    Args:
        size: D.
        intermediate_size: F.
    """

    def __init__(self, size: int, intermediate_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class SiglipLayer(nn.Module):
    """LayerNorm, attention, residual; LayerNorm, MLP, residual.

    Args:
        config: SiglipVisionConfig or SiglipTextConfig.
    """

    def __init__(self, config: SiglipVisionConfig | SiglipTextConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.layer_norm1 = nn.LayerNorm(size, eps)
        self.self_attn = SiglipAttention(size, config.num_attention_heads)
        self.layer_norm2 = nn.LayerNorm(size, eps)
        self.mlp = SiglipMLP(size, config.intermediate_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, P, D] to [N, P, D]."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class SiglipLayers(nn.Module):
    """The stack, which is called `encoder` in every checkpoint."""

    def __init__(self, config: SiglipVisionConfig | SiglipTextConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            SiglipLayer(config) for _ in range(config.num_hidden_layers)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, P, D] to [N, P, D]."""
        for layer in self.layers:
            x = layer(x)
        return x


class PatchEmbeddings(nn.Module):
    """Patches to vectors, each with the vector of its place.

    Args:
        config: SiglipVisionConfig.
    """

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        size, patch = config.hidden_size, config.patch_size
        self.patch_embedding = nn.Conv2d(config.num_channels, size, patch, patch)
        self.position_embedding = nn.Embedding(config.grid**2, size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[N, 3, S, S] to [N, P, D]."""
        patches = self.patch_embedding(pixel_values).flatten(2)  # [N, D, P]
        return patches.transpose(1, 2) + self.position_embedding.weight


class AttentionPool(nn.Module):
    """One learned query looks at all patches: an image as one vector.

    Args:
        config: SiglipVisionConfig.
    """

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.probe = nn.Parameter(torch.randn(1, 1, size))
        self.attention = nn.MultiheadAttention(
            size, config.num_attention_heads, batch_first=True
        )
        self.layernorm = nn.LayerNorm(size, config.layer_norm_eps)
        self.mlp = SiglipMLP(size, config.intermediate_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, P, D] to [N, D]."""
        probe = self.probe.expand(len(x), -1, -1)
        seen = self.attention(probe, x, x, need_weights=False)[0]  # [N, 1, D]
        return (seen + self.mlp(self.layernorm(seen)))[:, 0]


class SiglipVision(nn.Module):
    """The image encoder.

    Args:
        config: SiglipVisionConfig.
        pooled: whether there is a head that makes one vector of an image. Models that
            put patches into a text have none.
        normed: whether the last norm is there; LLaVA takes what comes before it.

    Source: Zhai et al. 2023; transformers' `SiglipVisionModel`.
    """

    def __init__(
        self, config: SiglipVisionConfig, pooled: bool = True, normed: bool = True
    ) -> None:
        super().__init__()
        self.config = config
        self.embeddings = PatchEmbeddings(config)
        self.encoder = SiglipLayers(config)
        norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.post_layernorm = norm if normed else nn.Identity()
        self.head = AttentionPool(config) if pooled else None

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images to patches.

        Args:
            pixel_values: [N, 3, S, S], each number from -1 to 1.

        Returns:
            [N, P, D].
        """
        return self.post_layernorm(self.encoder(self.embeddings(pixel_values)))

    def pool(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images to one vector each: [N, 3, S, S] to [N, D]."""
        if self.head is None:
            raise ValueError("this encoder was made without a head: pooled=True")
        return self.head(self(pixel_values))


class TokenEmbeddings(nn.Module):
    """Tokens to vectors, each with the vector of its place."""

    def __init__(self, config: SiglipTextConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.token_embedding = nn.Embedding(config.vocab_size, size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int [N, T] to [N, T, D]."""
        places = self.position_embedding.weight[: tokens.shape[1]]
        return self.token_embedding(tokens) + places


class SiglipText(nn.Module):
    """The text encoder: without a causal mask, and padding is read like text.

    A text is the last of its tokens, which is padding if it is short: the model was
    trained so, on texts filled up to `max_position_embeddings`.

    Args:
        config: SiglipTextConfig.

    Source: transformers' `SiglipTextModel`.
    """

    def __init__(self, config: SiglipTextConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TokenEmbeddings(config)
        self.encoder = SiglipLayers(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.projection_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """int [N, T], padded to the full length, to [N, D]."""
        hidden = self.final_layer_norm(self.encoder(self.embeddings(tokens)))
        return self.head(hidden[:, -1])


class Siglip(nn.Module):
    """Both encoders, and how alike every image is to every text.

    Args:
        vision: SiglipVisionConfig.
        text: SiglipTextConfig.
    """

    def __init__(self, vision: SiglipVisionConfig, text: SiglipTextConfig) -> None:
        super().__init__()
        self.vision_model = SiglipVision(vision)
        self.text_model = SiglipText(text)
        self.logit_scale = nn.Parameter(torch.tensor([2.302585]))  # 10, as a logarithm
        self.logit_bias = nn.Parameter(torch.tensor([-10.0]))

    def forward(self, pixel_values: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Logits that an image and a text belong together.

        Args:
            pixel_values: [N, 3, S, S].
            tokens: int [M, T], padded to the full length.

        Returns:
            [N, M].
        """
        images = F.normalize(self.vision_model.pool(pixel_values), dim=-1)  # [N, D]
        texts = F.normalize(self.text_model(tokens), dim=-1)  # [M, D]
        return images @ texts.T * self.logit_scale.exp() + self.logit_bias


def sigmoid_loss(logits: torch.Tensor) -> torch.Tensor:
    """Every pair is a question of its own: does this image belong to this text?

    Args:
        logits: [N, N], image i belongs to text i and to no other.

    Returns:
        fp32 scalar: the sum over all pairs, divided by N.

    Source: Zhai et al. 2023, algorithm 1.
    """
    signs = 2 * torch.eye(len(logits), device=logits.device) - 1
    return -F.logsigmoid(signs * logits.float()).sum() / len(logits)
