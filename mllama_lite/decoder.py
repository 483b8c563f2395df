# Generated from notebooks/04_decoder.ipynb: edit there, or here and run `make update`.
"""The text decoder: embedding, self-attention layers, head. A whole Llama 3 by itself.

Built in chapter 4, notebooks/04_decoder.ipynb. Module and parameter names are those of
the hub's `LlamaForCausalLM`, so that a state dict fits without renaming.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.attention import KVCache, SelfAttention, causal_mask
from mllama_lite.errors import InputError
from mllama_lite.rope import RopeScaling, rope_cos_sin, rope_frequencies


@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text decoder; the defaults are the 11B's, names are `config.json`'s.

    `num_hidden_layers` counts self- and cross-attention layers together;
    `cross_attention_layers` says which ones are cross-attention. `num_extra_embeddings`
    rows follow the vocabulary in the embedding (8 with images: the first is the image
    token) and have no counterpart in the head.
    """

    vocab_size: int = 128256
    hidden_size: int = 4096
    intermediate_size: int = 14336
    num_hidden_layers: int = 40
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = RopeScaling()
    max_position_embeddings: int = 131072
    tie_word_embeddings: bool = False
    cross_attention_layers: tuple[int, ...] = (3, 8, 13, 18, 23, 28, 33, 38)
    num_extra_embeddings: int = 8

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"The configuration has {self.num_attention_heads} query heads for "
                f"{self.num_key_value_heads} key heads: expected a multiple; correct it."
            )
        if self.tie_word_embeddings and self.num_extra_embeddings:
            raise InputError(
                "The configuration ties the head to an embedding with "
                f"{self.num_extra_embeddings} more rows: expected tie_word_embeddings "
                "false for a model with images; correct it."
            )

    @property
    def self_attention_layers(self) -> tuple[int, ...]:
        """Indices of the layers that are not cross-attention."""
        every = range(self.num_hidden_layers)
        return tuple(i for i in every if i not in self.cross_attention_layers)


class RMSNorm(nn.Module):
    """Divide by the root of the mean square, then scale: the square root is in fp32.

    The order of casts matters in bf16: normalise in fp32, round to the input's dtype,
    and only then multiply by the weight.

    Args:
        size: length of the last dimension.
        eps: added to the mean square.

    Source: Zhang & Sennrich 2019; llama_models/llama3/model.py, `RMSNorm`.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D], same dtype."""
        return F.rms_norm(x, x.shape[-1:], eps=self.eps) * self.weight


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)).

    Args:
        hidden_size: D.
        intermediate_size: F.

    Source: Shazeer 2020; llama_models/llama3/multimodal/model.py, `FeedForward`.
    """

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@dataclass
class Step:
    """What all layers of one forward pass share; each takes of it what it needs.

    Attributes:
        cos, sin: fp32 [B or 1, 1, T, E/2], RoPE at the tokens' positions.
        cache, positions, mask: see `SelfAttention.forward`.
        vision: VisionContext of chapter 8; None if no token sees an image.
    """

    cos: torch.Tensor | None = None
    sin: torch.Tensor | None = None
    cache: KVCache | None = None
    positions: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    vision: Any = None


class DecoderLayer(nn.Module):
    """Norm, self-attention, residual; norm, MLP, residual.

    Args:
        config: TextConfig.
        layer: index of the layer.
    """

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps)
        self.self_attn = SelfAttention(
            size,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            layer,
        )
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.mlp = MLP(size, config.intermediate_size)

    def forward(self, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        """[B, T, D] to [B, T, D]."""
        hidden = hidden + self.self_attn(
            self.input_layernorm(hidden),
            step.cos,
            step.sin,
            step.cache,
            step.positions,
            step.mask,
        )
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class TextModel(nn.Module):
    """Embedding, layers, final norm: token ids to hidden states.

    Args:
        config: TextConfig.
        make_layer: called with (config, index) for every layer; it is then called as
            layer(hidden, step). Chapter 8 has one that looks at images.
    """

    def __init__(
        self,
        config: TextConfig,
        make_layer: Callable[[TextConfig, int], nn.Module] = DecoderLayer,
    ) -> None:
        super().__init__()
        self.config = config
        rows = config.vocab_size + config.num_extra_embeddings
        self.embed_tokens = nn.Embedding(rows, config.hidden_size)
        self.layers = nn.ModuleList(
            make_layer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # By device; not a buffer, so that no cast can round it.
        self._frequencies: dict[torch.device, torch.Tensor] = {}

    def forward(
        self,
        tokens: torch.Tensor | None,
        cache: KVCache | None = None,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        vision: Any = None,
        embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states of every token.

        Args:
            tokens: int [B, T]; None with `embeddings`.
            cache: KVCache that holds the earlier tokens, or None if there are none.
            positions: int [B, T]; None if every row continues where the cache ends,
                whose length then grows by T. With positions, the caller keeps it.
            mask: bool [B or 1, 1, T, S], True where a token attends; None for causal:
                a token attends to all slots up to its own position.
            vision: what the cross-attention layers look at (chapter 8); None skips
                these layers.
            embeddings: [B, T, D], what enters the first layer instead of the rows of
                the embedding, for what is no token.

        Returns:
            [B, T, D], after the final norm.
        """
        hidden = self.embed_tokens(tokens) if embeddings is None else embeddings
        device, length = hidden.device, hidden.shape[1]  # of [B, T, D]
        if positions is None:
            start = 0 if cache is None else cache.length
            here = torch.arange(start, start + length, device=device)[None]
            if mask is None and start > 0 and length > 1:
                mask = causal_mask(length, start + length, device)[None, None]
        else:
            here = positions
            if mask is None and cache is not None:
                end = cache.window or cache.length + length
                slots = torch.arange(end, device=device)
                mask = (slots <= positions[:, :, None])[:, None]  # [B, 1, T, S]
        cos, sin = rope_cos_sin(self.frequencies(device), here[:, None])
        step = Step(cos, sin, cache, positions, mask, vision)
        for layer in self.layers:
            hidden = layer(hidden, step)
        if cache is not None and positions is None:
            cache.length += length
        return self.norm(hidden)

    def frequencies(self, device: torch.device) -> torch.Tensor:
        """RoPE's frequencies, fp32 [E/2], kept per device."""
        if device not in self._frequencies:
            config = self.config
            table = rope_frequencies(
                config.head_dim, config.rope_theta, config.rope_scaling
            )
            self._frequencies[device] = table.to(device)
        return self._frequencies[device]


class LanguageModel(nn.Module):
    """A text model with a head: token ids to logits. Without images, a Llama 3.

    Args:
        config: TextConfig; `tie_word_embeddings` makes the head the embedding itself.
        make_layer: see `TextModel`.
    """

    def __init__(
        self,
        config: TextConfig,
        make_layer: Callable[[TextConfig, int], nn.Module] = DecoderLayer,
    ) -> None:
        super().__init__()
        self.config = config
        self.model = TextModel(config, make_layer)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make head and embedding one parameter again, if they are to be."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(
        self,
        tokens: torch.Tensor | None,
        cache: KVCache | None = None,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        vision: Any = None,
        logits_at: torch.Tensor | None = None,
        embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of the next token.

        Args:
            tokens, cache, positions, mask, vision, embeddings: see `TextModel.forward`.
            logits_at: int [B], for each row the one token whose logits are wanted; None
                for all. The head of the 11B costs as much as two layers.

        Returns:
            fp32 [B, T, W], or [B, 1, W] with `logits_at`.
        """
        hidden = self.model(tokens, cache, positions, mask, vision, embeddings)
        if logits_at is not None:
            rows = torch.arange(len(hidden), device=hidden.device)
            hidden = hidden[rows, logits_at][:, None]  # [B, 1, D]
        return self.lm_head(hidden).float()
