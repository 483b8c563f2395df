# Generated from notebooks/03_attention.ipynb: edit there, or here and run `make update`.
"""Grouped-query attention: several query heads share one key and one value head.

Built in chapter 3, notebooks/03_attention.ipynb.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.rope import apply_rope


def causal_mask(
    num_queries: int, num_keys: int, device: torch.device | None = None
) -> torch.Tensor:
    """Which key each query may look at, when the queries are the last of the tokens.

    Args:
        num_queries: T.
        num_keys: S, at least T; the first S - T keys are earlier tokens.

    Returns:
        bool [T, S], True where the query attends: key j for query i if j <= S - T + i.
    """
    keys = torch.arange(num_keys, device=device)
    queries = torch.arange(num_keys - num_queries, num_keys, device=device)
    return keys <= queries[:, None]


def attention_by_hand(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention written out, for checking and for looking at the weights.

    Args:
        query: [B, H, T, E].
        key, value: [B, G, S, E], G a divisor of H; query head h uses head h // (H/G).
        mask: bool, broadcastable to [B, H, T, S], True where the query attends.

    Returns:
        (output [B, H, T, E], weights fp32 [B, H, T, S]).

    Source: Vaswani et al. 2017; Ainslie et al. 2023.
    """
    group = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(group, dim=1)  # [B, H, S, E]
    value = value.repeat_interleave(group, dim=1)  # [B, H, S, E]
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5  # [B, H, T, S]
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.float().softmax(dim=-1)
    return weights.to(value.dtype) @ value, weights


def grouped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """Softmax attention with shared key and value heads, which are never copied.

    Causal attention is the fused kernel's own case. In every other case the query heads
    of a group become further rows of one head, which changes nothing: rows of queries
    do not see each other.

    Args:
        query: [B, H, T, E].
        key, value: [B, G, S, E], G a divisor of H.
        mask: None, or bool [B or 1, 1, T, S], True where the query attends; every query
            needs at least one key.
        causal: query i sees keys 0 to i; needs S = T and no mask.

    Returns:
        [B, H, T, E].

    Raises:
        ValueError: `causal` with more keys than queries: give a `causal_mask`.
    """
    if causal:
        if key.shape[2] != query.shape[2]:
            raise ValueError(
                "causal attention needs as many keys as queries, or a mask"
            )
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, enable_gqa=True
        )
    batch, heads, length, head_dim = query.shape
    group = heads // key.shape[1]
    if group == 1:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    folded = query.reshape(
        batch, key.shape[1], group * length, head_dim
    )  # [B, G, H/G·T, E]
    if mask is not None and length > 1:
        mask = mask.repeat(1, 1, group, 1)  # [B, 1, H/G·T, S]
    output = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask)
    return output.reshape(batch, heads, length, head_dim)


class KVCache:
    """Keys and values of all tokens so far, for every self-attention layer.

    What a layer stores first says how many rows, heads and numbers a head there are, in
    which dtype and where; memory for all slots is taken then. Slot j of a row holds the
    token at position j, so rows of different lengths need no shifting: a short row's
    free slots are filled later, and no query looks at a slot beyond its own position.

    Args:
        capacity: S, the most tokens a row can have.

    Attributes:
        keys, values: dict from a layer's index to [B, G, S, E].
        length: slots in use by the longest row.
        window: how many slots attention reads; None for those in use. A fixed number
            makes every step the same shape, for compiling and capturing it; what is
            not yet filled has then to be masked.
    """

    def __init__(self, capacity: int) -> None:
        self.keys: dict[int, torch.Tensor] = {}
        self.values: dict[int, torch.Tensor] = {}
        self.capacity = capacity
        self.length = 0
        self.window: int | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes held: 2 · layers · B · G · S · E · bytes a number."""
        tensors = [*self.keys.values(), *self.values.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def reserve(self, capacity: int) -> None:
        """Make room for at least `capacity` tokens a row; what is stored is kept."""
        if capacity <= self.capacity:
            return
        for tensors in (self.keys, self.values):
            for layer, old in tensors.items():
                tensors[layer] = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
                tensors[layer][:, :, : self.capacity] = old
        self.capacity = capacity

    def update(
        self,
        layer: int,
        key: torch.Tensor,
        value: torch.Tensor,
        positions: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store new keys and values of a layer and return all that are in use.

        Args:
            layer: index of the layer.
            key, value: [B, G, T, E].
            positions: int [B, T], the slot of each token; None if every row continues
                at `length`.

        Returns:
            (keys, values), each a view [B, G, S, E]; S is length + T, or `window`.

        Raises:
            IndexError: there is no slot left: call `reserve` first.
        """
        if layer not in self.keys:
            shape = (*key.shape[:2], self.capacity, key.shape[3])
            self.keys[layer], self.values[layer] = (
                key.new_zeros(shape),
                key.new_zeros(shape),
            )
        keys, values = self.keys[layer], self.values[layer]
        end = self.window or self.length + key.shape[2]
        if end > self.capacity:
            raise IndexError(
                f"the cache has {self.capacity} slots, and {end} are needed"
            )
        if positions is None:
            new = slice(self.length, self.length + key.shape[2])
            keys[:, :, new] = key
            values[:, :, new] = value
        else:
            rows = torch.arange(key.shape[0], device=key.device)[:, None]  # [B, 1]
            keys[rows, :, positions] = key.transpose(1, 2)  # [B, T, G, E]
            values[rows, :, positions] = value.transpose(1, 2)
        return keys[:, :, :end], values[:, :, :end]


class SelfAttention(nn.Module):
    """Causal self-attention with grouped heads, RoPE and an optional cache.

    Args:
        hidden_size: D.
        num_heads: H.
        num_kv_heads: G.
        head_dim: E.
        layer: index of the layer, which names its place in the cache.

    Source: llama_models/llama3/multimodal/model.py, `Attention`.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        layer: int = 0,
    ) -> None:
        super().__init__()
        self.head_dim, self.layer = head_dim, layer
        self.q_proj = nn.Linear(hidden_size, num_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(hidden_size, num_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(num_heads * head_dim, hidden_size, bias=False)

    def forward(
        self,
        hidden: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        cache: KVCache | None = None,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mix every token with the tokens before it.

        Args:
            hidden: [B, T, D].
            cos, sin: fp32 [B or 1, 1, T, E/2].
            cache: KVCache or None.
            positions: see `KVCache.update`.
            mask: None for plain causal attention, else bool [B or 1, 1, T, S].

        Returns:
            [B, T, D].
        """
        batch, length, _ = hidden.shape
        heads = (batch, length, -1, self.head_dim)
        query = self.q_proj(hidden).view(heads).transpose(1, 2)  # [B, H, T, E]
        key = self.k_proj(hidden).view(heads).transpose(1, 2)  # [B, G, T, E]
        value = self.v_proj(hidden).view(heads).transpose(1, 2)  # [B, G, T, E]
        query, key = apply_rope(query, cos, sin), apply_rope(key, cos, sin)
        if cache is not None:
            key, value = cache.update(self.layer, key, value, positions)
        causal = mask is None and length > 1
        output = grouped_attention(query, key, value, mask, causal)  # [B, H, T, E]
        return self.o_proj(output.transpose(1, 2).flatten(2))  # [B, T, D]
