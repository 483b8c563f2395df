# Generated from notebooks/08_cross_attention.ipynb: edit there, or here and run `make update`.
"""Cross-attention: how text looks at images.

Built in chapter 8, notebooks/08_cross_attention.ipynb. Parameter names are the hub's.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mllama_lite.attention import grouped_attention
from mllama_lite.decoder import MLP, DecoderLayer, RMSNorm, Step, TextConfig


def visible_ranges(
    tokens: Sequence[int], image_id: int
) -> list[tuple[int, int | None]]:
    """Which text tokens see which image.

    A token sees the images from their own token on until the next image's; images in a
    row share their end; the last run of images is seen to the end of the text, however
    long it grows.

    Args:
        tokens: list of token ids of one row.
        image_id: the model's image token.

    Returns:
        list of (start, end), one an image: tokens start to end - 1 see it; an end of
        None means that there is no end.

    Source: llama_models/llama3/chat_format.py, `create_vision_mask`. Meta's code ends
    the last range at the prompt's length when there are two or more images, so that
    generated tokens see none; here it stays open, as it does there for one image.
    """
    starts = [i for i, token in enumerate(tokens) if token == image_id]
    ends = [*starts[1:], None]
    for i in reversed(range(len(starts) - 1)):
        if starts[i + 1] == starts[i] + 1:
            ends[i] = ends[i + 1]
    return list(zip(starts, ends))


@dataclass
class VisionContext:
    """What the cross-attention layers look at in one forward pass.

    Attributes:
        keys, values: dict from layer index to [B, G, V, E]: computed once an image,
            normalised, without RoPE, heads not repeated.
        mask: bool [B, 1, T, V], True where a token sees a vision token; None if every
            token that sees any sees all.
        sees: bool [B, T, 1], False for tokens that see no image, whose two branches are
            0; None if every token sees one.
    """

    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]
    mask: torch.Tensor | None = None
    sees: torch.Tensor | None = None


class CrossAttention(nn.Module):
    """Attention from text to vision tokens, with a norm on each query and key head.

    Args:
        config: TextConfig.

    Source: llama_models/llama3/multimodal/model.py, `CrossAttention`.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        key_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key_size, bias=False)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)

    def keys_and_values(
        self, vision: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Project vision tokens; done once an image, however long the answer is.

        Args:
            vision: [B, V, D], out of the projector.

        Returns:
            (key, value), each [B, G, V, E].
        """
        heads = (-1, self.head_dim)
        key = self.k_proj(vision).unflatten(-1, heads).transpose(1, 2)  # [B, G, V, E]
        value = self.v_proj(vision).unflatten(-1, heads).transpose(1, 2)  # [B, G, V, E]
        return self.k_norm(key), value

    def forward(
        self,
        hidden: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Look at the vision tokens.

        Args:
            hidden: [B, T, D].
            key, value: [B, G, V, E] from `keys_and_values`.
            mask: bool [B, 1, T, V] or None.

        Returns:
            [B, T, D].
        """
        query = self.q_proj(hidden).unflatten(-1, (-1, self.head_dim))  # [B, T, H, E]
        query = self.q_norm(query).transpose(1, 2)  # [B, H, T, E]
        output = grouped_attention(query, key, value, mask)  # [B, H, T, E]
        return self.o_proj(output.transpose(1, 2).flatten(2))  # [B, T, D]


class CrossAttentionLayer(nn.Module):
    """A layer that lets text see images, scaled by two gates that start closed.

    Args:
        config: TextConfig.
        layer: index of the layer, which names its keys and values.

    Source: llama_models/llama3/multimodal/model.py, `CrossAttentionTransformerBlock`.
    """

    def __init__(self, config: TextConfig, layer: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.layer = layer
        self.input_layernorm = RMSNorm(size, eps)
        self.cross_attn = CrossAttention(config)
        self.cross_attn_attn_gate = nn.Parameter(torch.zeros(1))
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.mlp = MLP(size, config.intermediate_size)
        self.cross_attn_mlp_gate = nn.Parameter(torch.zeros(1))

    def keys_and_values(
        self, vision: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CrossAttention.keys_and_values`. Whoever wraps a layer finds this here."""
        return self.cross_attn.keys_and_values(vision)

    def forward(self, hidden: torch.Tensor, step: Step) -> torch.Tensor:
        """Add what the images say to the tokens that see one.

        Both branches are 0 for tokens that see none. transformers zeroes only the
        second; Meta's code, which came with the weights, both.

        Args:
            hidden: [B, T, D].
            step: Step; without a VisionContext in it the layer is skipped.

        Returns:
            [B, T, D].
        """
        vision = step.vision
        if vision is None:
            return hidden
        key, value = vision.keys[self.layer], vision.values[self.layer]
        attended = self.cross_attn(
            self.input_layernorm(hidden), key, value, vision.mask
        )
        if vision.sees is not None:
            attended = attended * vision.sees
        hidden = hidden + self.cross_attn_attn_gate.tanh() * attended
        enlarged = self.mlp(self.post_attention_layernorm(hidden))
        if vision.sees is not None:
            enlarged = enlarged * vision.sees
        return hidden + self.cross_attn_mlp_gate.tanh() * enlarged


def make_layer(config: TextConfig, index: int) -> CrossAttentionLayer | DecoderLayer:
    """The layer at an index of a decoder that sees images; see `TextModel`."""
    crosses = index in config.cross_attention_layers
    return (CrossAttentionLayer if crosses else DecoderLayer)(config, index)


@dataclass
class VisionCache:
    """Keys and values of all images of a batch, and where each image's tokens lie.

    Attributes:
        keys, values: dict from layer index to [B, G, V, E]; V is that of the row with
            most vision tokens, shorter rows end in padding that nothing sees.
        counts: for each row, the number of vision tokens of each of its images.
    """

    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]
    counts: list[list[int]]

    @classmethod
    def from_images(
        cls,
        layers: Iterable[CrossAttentionLayer],
        rows: Sequence[list[torch.Tensor]],
    ) -> "VisionCache":
        """Compute keys and values of images for all cross-attention layers.

        Args:
            layers: list of CrossAttentionLayer.
            rows: for each row of the batch, a list of images, each [V_i, D]: the
                projected tokens of its valid tiles. At least one row has an image.

        Returns:
            VisionCache.
        """
        counts = [[len(image) for image in row] for row in rows]
        some = next(image for row in rows for image in row)
        joined = [torch.cat(row) if row else some[:0] for row in rows]
        vision = nn.utils.rnn.pad_sequence(joined, batch_first=True)  # [B, V, D]
        pairs = {layer.layer: layer.keys_and_values(vision) for layer in layers}
        keys = {i: key for i, (key, _) in pairs.items()}
        values = {i: value for i, (_, value) in pairs.items()}
        return cls(keys, values, counts)

    def extended(self, other: "VisionCache") -> "VisionCache":
        """This cache with the images of another appended; both of one row."""
        keys, values = (
            {i: torch.cat([mine[i], theirs[i]], dim=2) for i in mine}
            for mine, theirs in ((self.keys, other.keys), (self.values, other.values))
        )
        return VisionCache(keys, values, [self.counts[0] + other.counts[0]])

    def context(
        self,
        ranges: Sequence[Sequence[tuple[int, int | None]]],
        starts: Sequence[int],
        length: int,
    ) -> VisionContext | None:
        """What T tokens of each row see: a mask only where one is needed.

        Args:
            ranges: for each row, the list that `visible_ranges` gives for its tokens.
            starts: for each row, the position of its first token.
            length: T.

        Returns:
            VisionContext, or None if no token sees any image.
        """
        key = next(iter(self.keys.values()))
        most = max(map(len, self.counts))
        # A column for each image and one for a row's padding, which nothing sees.
        images = torch.zeros(len(ranges), length, most + 1, dtype=torch.bool)
        repeats = torch.zeros(len(ranges), most + 1, dtype=torch.long)  # [B, M + 1]
        for i, (start, row, counts) in enumerate(zip(starts, ranges, self.counts)):
            for j, ((first, end), count) in enumerate(zip(row, counts, strict=True)):
                end = start + length if end is None else end
                images[i, max(first - start, 0) : max(end - start, 0), j] = True
                repeats[i, j] = count
            repeats[i, most] = key.shape[2] - sum(counts)
        sees = images.any(dim=-1, keepdim=True)  # [B, T, 1]
        if not sees.any():
            return None
        images |= ~sees  # a row that sees nothing sees all, and is multiplied by 0
        mask = None
        if (~images & (repeats > 0)[:, None]).any():
            rows = [row.repeat_interleave(n, dim=1) for row, n in zip(images, repeats)]
            mask = torch.stack(rows)[:, None].to(key.device)  # [B, 1, T, V]
        if sees.all():
            return VisionContext(self.keys, self.values, mask)
        return VisionContext(self.keys, self.values, mask, sees.to(key.device))
