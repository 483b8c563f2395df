# Generated from notebooks/16_text.ipynb: edit there, or here and run `make update`.
"""Llama 4's text model: experts, and layers that know of no positions.

Built in chapter 16, notebooks/16_text.ipynb, from the parts of chapters 2 to 4. Three
layers of four have RoPE and see only the chunk of the text that they are in; every fourth
sees all of it and has no positions at all. Parameter names are those of the hub's
`Llama4ForCausalLM`.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.attention import KVCache, causal_mask, grouped_attention
from mllama_lite.decoder import MLP, RMSNorm
from mllama_lite.errors import InputError, shown
from mllama_lite.families.experts import MixtureOfExperts
from mllama_lite.rope import (
    RopeScaling,
    apply_rope_interleaved,
    rope_cos_sin,
    rope_frequencies,
)


# What they count may be left out.
MAY_BE_0 = (
    "num_local_experts",
    "num_experts_per_tok",
    "no_rope_layer_interval",
    "attention_chunk_size",
)


@dataclass(frozen=True)
class Llama4Config:
    """Sizes of a Llama 4 text model; the defaults are Scout's, names are `config.json`'s.

    `no_rope_layer_interval` 4 means that layers 3, 7, ... have no positions; 0 that all
    have. `attention_chunk_size` 0 lets every layer see all tokens. With
    `num_local_experts` 0 every MLP is a plain one, of `intermediate_size_mlp`; else
    every `interleave_moe_layer_step`-th is a mixture of experts of `intermediate_size`.
    `shared_expert` is this package's word: false for Mixtral's way, see
    `MixtureOfExperts`.
    """

    vocab_size: int = 202048
    hidden_size: int = 5120
    intermediate_size: int = 8192
    intermediate_size_mlp: int = 16384
    num_hidden_layers: int = 48
    num_attention_heads: int = 40
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 500000.0
    rope_scaling: RopeScaling | None = RopeScaling(16.0, 1.0, 1.0, 8192)
    no_rope_layer_interval: int = 4
    attention_chunk_size: int = 8192
    use_qk_norm: bool = True
    attn_temperature_tuning: bool = True
    floor_scale: float = 8192.0
    attn_scale: float = 0.1
    num_local_experts: int = 16
    num_experts_per_tok: int = 1
    interleave_moe_layer_step: int = 1
    shared_expert: bool = True
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for name, kind in self.__annotations__.items():
            if kind is not int:
                continue
            value, least = getattr(self, name), 0 if name in MAY_BE_0 else 1
            if type(value) is not int or value < least:
                raise InputError(
                    f"The configuration's {name} is {shown(value)}: expected a whole "
                    f"number, {least} or more; correct it."
                )
        if self.head_dim % 2 or not self.floor_scale > 0 or not self.rope_theta > 0:
            raise InputError(
                f"The configuration has head_dim {self.head_dim}, floor_scale "
                f"{self.floor_scale} and rope_theta {self.rope_theta}: expected an even "
                "number, and two above 0; correct them."
            )
        if self.num_attention_heads % self.num_key_value_heads:
            raise InputError(
                f"The configuration has {self.num_attention_heads} query heads for "
                f"{self.num_key_value_heads} key heads: expected a multiple; correct it."
            )
        if self.num_local_experts and not (
            0 < self.num_experts_per_tok <= self.num_local_experts
        ):
            raise InputError(
                f"The configuration sends a token to {self.num_experts_per_tok} of "
                f"{self.num_local_experts} experts: expected 1 to "
                f"{self.num_local_experts}; correct it."
            )

    def has_rope(self, layer: int) -> bool:
        """Whether a layer turns queries and keys by their positions."""
        every = self.no_rope_layer_interval
        return not every or (layer + 1) % every != 0

    def has_experts(self, layer: int) -> bool:
        """Whether a layer has experts in the place of its MLP."""
        every = self.interleave_moe_layer_step
        return self.num_local_experts > 0 and (layer + 1) % every == 0


@dataclass
class ChunkedStep:
    """What all layers of one forward pass share.

    Attributes:
        cos, sin: fp32 [B or 1, 1, T, E/2], RoPE at the tokens' positions.
        temperature: fp32 [B or 1, 1, T, 1], factor of the queries without RoPE.
        near, far: bool [B or 1, 1, T, S], True where a token attends, within its chunk
            and to all before it; None for plain causal attention.
        cache, positions: see `SelfAttention.forward`.
    """

    cos: torch.Tensor
    sin: torch.Tensor
    temperature: torch.Tensor
    near: torch.Tensor | None
    far: torch.Tensor | None
    cache: KVCache | None
    positions: torch.Tensor | None


class Llama4Attention(nn.Module):
    """Grouped attention with positions inside a chunk, or without and over everything.

    Args:
        config: Llama4Config.
        layer: index of the layer.

    Source: llama_models/llama4/model.py, `Attention`; the temperature after
    Nakanishi 2025.
    """

    def __init__(self, config: Llama4Config, layer: int) -> None:
        super().__init__()
        size, head_dim = config.hidden_size, config.head_dim
        self.layer, self.head_dim, self.eps = layer, head_dim, config.rms_norm_eps
        self.has_rope = config.has_rope(layer)
        self.has_norm = config.use_qk_norm and self.has_rope
        many, few = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(size, many * head_dim, bias=False)
        self.k_proj = nn.Linear(size, few * head_dim, bias=False)
        self.v_proj = nn.Linear(size, few * head_dim, bias=False)
        self.o_proj = nn.Linear(many * head_dim, size, bias=False)

    def forward(self, hidden: torch.Tensor, step: ChunkedStep) -> torch.Tensor:
        """[B, T, D] to [B, T, D]."""
        batch, length, _ = hidden.shape
        heads = (batch, length, -1, self.head_dim)
        query = self.q_proj(hidden).view(heads).transpose(1, 2)  # [B, H, T, E]
        key = self.k_proj(hidden).view(heads).transpose(1, 2)  # [B, G, T, E]
        value = self.v_proj(hidden).view(heads).transpose(1, 2)  # [B, G, T, E]
        if self.has_rope:
            query = apply_rope_interleaved(query, step.cos, step.sin)
            key = apply_rope_interleaved(key, step.cos, step.sin)
        else:
            query = (query * step.temperature).to(query.dtype)
        if self.has_norm:
            query = F.rms_norm(query, query.shape[-1:], eps=self.eps)
            key = F.rms_norm(key, key.shape[-1:], eps=self.eps)
        if step.cache is not None:
            key, value = step.cache.update(self.layer, key, value, step.positions)
        mask = step.near if self.has_rope else step.far
        causal = mask is None and length > 1
        output = grouped_attention(query, key, value, mask, causal)  # [B, H, T, E]
        return self.o_proj(output.transpose(1, 2).flatten(2))  # [B, T, D]


class Llama4Layer(nn.Module):
    """Norm, attention, residual; norm, MLP or experts, residual.

    Args:
        config: Llama4Config.
        layer: index of the layer.
    """

    def __init__(self, config: Llama4Config, layer: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.rms_norm_eps
        self.input_layernorm = RMSNorm(size, eps)
        self.self_attn = Llama4Attention(config, layer)
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.feed_forward: nn.Module = MLP(size, config.intermediate_size_mlp)
        if config.has_experts(layer):
            self.feed_forward = MixtureOfExperts(
                size,
                config.intermediate_size,
                config.num_local_experts,
                config.num_experts_per_tok,
                config.shared_expert,
            )

    def forward(self, hidden: torch.Tensor, step: ChunkedStep) -> torch.Tensor:
        """[B, T, D] to [B, T, D]."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), step)
        return hidden + self.feed_forward(self.post_attention_layernorm(hidden))


class Llama4Model(nn.Module):
    """Embedding, layers, final norm: token ids to hidden states.

    Args:
        config: Llama4Config.
    """

    def __init__(self, config: Llama4Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            Llama4Layer(config, i) for i in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        # By device; not a buffer, so that no cast can round it.
        self._frequencies: dict[torch.device, torch.Tensor] = {}

    def forward(
        self,
        tokens: torch.Tensor | None,
        cache: KVCache | None = None,
        positions: torch.Tensor | None = None,
        embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states of every token.

        Args:
            tokens: int [B, T]; None with `embeddings`.
            cache: KVCache that holds the earlier tokens, or None if there are none.
            positions: int [B, T]; None if every row continues where the cache ends,
                whose length then grows by T. With positions, the caller keeps it.
            embeddings: [B, T, D], what enters the first layer instead of the rows of
                the embedding, for what is no token.

        Returns:
            [B, T, D], after the final norm.
        """
        hidden = self.embed_tokens(tokens) if embeddings is None else embeddings
        step = self.step(hidden, cache, positions)
        for layer in self.layers:
            hidden = layer(hidden, step)
        if cache is not None and positions is None:
            cache.length += hidden.shape[1]
        return self.norm(hidden)

    def step(
        self,
        hidden: torch.Tensor,
        cache: KVCache | None,
        positions: torch.Tensor | None,
    ) -> ChunkedStep:
        """Angles, temperatures and masks; arguments as `forward` has them."""
        config, device, length = self.config, hidden.device, hidden.shape[1]
        start = 0 if cache is None or positions is not None else cache.length
        here = torch.arange(start, start + length, device=device)[None]  # [1, T]
        here = here if positions is None else positions
        end = start + length  # S
        if cache is not None and positions is not None:
            end = cache.window or cache.length + length
        slots = torch.arange(end, device=device)
        far = None
        if positions is not None and cache is not None:
            far = (slots <= here[:, :, None])[:, None]  # [B, 1, T, S]
        elif start and length > 1:
            far = causal_mask(length, end, device)[None, None]
        near, chunk = far, config.attention_chunk_size
        # Whoever is beyond the first chunk must not look back into it, one token neither.
        if chunk and end > chunk:
            same = slots // chunk == (here // chunk)[:, :, None]  # [B or 1, T, S]
            near = (same & (slots <= here[:, :, None]))[:, None]
        temperature = torch.ones(1, 1, 1, 1, device=device)
        if config.attn_temperature_tuning:
            steps = ((here.float() + 1) / config.floor_scale).floor()
            temperature = (1 + config.attn_scale * (steps + 1).log())[:, None, :, None]
        cos, sin = rope_cos_sin(self.frequencies(device), here[:, None])
        return ChunkedStep(cos, sin, temperature, near, far, cache, positions)

    def frequencies(self, device: torch.device) -> torch.Tensor:
        """RoPE's frequencies, fp32 [E/2], kept per device."""
        if device not in self._frequencies:
            config = self.config
            table = rope_frequencies(
                config.head_dim, config.rope_theta, config.rope_scaling
            )
            self._frequencies[device] = table.to(device)
        return self._frequencies[device]


class Llama4(nn.Module):
    """The text model with its head: token ids to logits.

    Args:
        config: Llama4Config; `tie_word_embeddings` makes the head the embedding itself.
    """

    def __init__(self, config: Llama4Config) -> None:
        super().__init__()
        self.config = config
        self.model = Llama4Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make head and embedding one parameter again, if they are to be."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.lm_head.weight.device

    def forward(
        self,
        tokens: torch.Tensor | None,
        cache: KVCache | None = None,
        positions: torch.Tensor | None = None,
        logits_at: torch.Tensor | None = None,
        embeddings: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of the next token.

        Args:
            tokens, cache, positions, embeddings: see `Llama4Model.forward`.
            logits_at: int [B], for each row the one token whose logits are wanted; None
                for all.

        Returns:
            fp32 [B, T, W], or [B, 1, W] with `logits_at`.
        """
        hidden = self.model(tokens, cache, positions, embeddings)
        if logits_at is not None:
            rows = torch.arange(len(hidden), device=hidden.device)
            hidden = hidden[rows, logits_at][:, None]  # [B, 1, D]
        return self.lm_head(hidden).float()


def from_meta(
    state: dict[str, torch.Tensor], config: Llama4Config
) -> dict[str, torch.Tensor]:
    """Meta's names and forms of Llama 4's text weights, turned into this model's.

    Taken are the names of Meta's modules, and those of the checkpoints, which Meta's
    code renames while it loads. Both turn pairs (2i, 2i + 1), so that unlike Llama 3's
    nothing is permuted.

    Args:
        state: dict from names, as `layers.0.attention.wq.weight`, to tensors; what
            belongs to the vision encoder is left out.
        config: Llama4Config, which says how joined matrices are cut.

    Returns:
        dict from this model's names to tensors.

    Raises:
        InputError: a name that is none of Meta's; half of an expert's matrices.

    Source: the load hooks in llama_models/llama4: model.py, moe.py, ffn.py.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in as_modules(state, config).items():
        parts, end = name.split("."), name.split(".", 2)[-1]
        if parts[0] != "layers":
            if name not in TOP_NAMES:
                raise _unknown(name)
            found[TOP_NAMES[name]] = tensor
            continue
        layer = f"model.layers.{parts[1]}."
        if end in LAYER_NAMES:
            found[layer + LAYER_NAMES[end]] = tensor
        elif end == "feed_forward.router_DE":
            found[layer + "feed_forward.router.weight"] = tensor.T.contiguous()
        elif end == "feed_forward.experts.w2":
            found[layer + "feed_forward.experts.down_proj"] = tensor
        elif end in ("feed_forward.experts.w1", "feed_forward.experts.w3"):
            found[name] = tensor
        else:
            raise _unknown(name)
    for name in [name for name in found if name.endswith("experts.w1")]:
        gate, up = found.pop(name), found.pop(name[:-1] + "3", None)
        if up is None:
            raise InputError(
                f"{name} is there and {name[:-1]}3 is not: expected both, for each "
                "expert; give a whole checkpoint."
            )
        both = torch.cat([gate, up], dim=-1)
        found[f"model.{name[:-2]}gate_up_proj"] = both
    return found


def as_modules(
    state: dict[str, torch.Tensor], config: Llama4Config
) -> dict[str, torch.Tensor]:
    """A checkpoint's names and forms as those of Meta's modules."""
    rows, experts = config.head_dim, config.num_local_experts
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    found = {}
    for name, tensor in state.items():
        if name.startswith(("vision_", "rope.")) or name.endswith("_extra_state"):
            continue
        layer, _, end = name.rpartition(".feed_forward.")
        inner = f"{layer}.feed_forward."
        if name.endswith("attention.wqkv.weight"):
            cuts = [heads * rows, groups * rows, groups * rows]
            for x, part in zip("qkv", tensor.split(cuts)):
                found[name.replace("wqkv", f"w{x}")] = part
        elif name.endswith("attention.wqkv.layer_norm_weight"):
            first = name.removesuffix("attention.wqkv.layer_norm_weight")
            found[f"{first}attention_norm.weight"] = tensor
        elif end in ("mlp.layer_norm_weight", "norm.weight") and layer:
            found[f"{layer}.ffn_norm.weight"] = tensor
        elif end == "mlp.fc1_weight":
            gate, up = tensor.chunk(2)
            found |= {inner + "w1.weight": gate, inner + "w3.weight": up}
        elif end in CHECKPOINT_NAMES:
            found[inner + CHECKPOINT_NAMES[end]] = tensor
        elif end in ("experts.moe_w_in_eD_F", "experts.moe_w_swiglu_eD_F"):
            number = 1 if "w_in" in end else 3
            cut = tensor.view(experts, config.hidden_size, -1)
            found[f"{inner}experts.w{number}"] = cut
        elif end == "experts.moe_w_out_eF_D":
            cut = tensor.view(experts, -1, config.hidden_size)
            found[inner + "experts.w2"] = cut
        else:
            found[name] = tensor
    return found


TOP_NAMES = {
    "tok_embeddings.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_MLP = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
LAYER_NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    **{f"attention.w{x}.weight": f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{
        f"feed_forward.{own}{theirs}.weight": f"feed_forward.{own}{mine}.weight"
        for own in ("", "shared_expert.")
        for theirs, mine in _MLP.items()
    },
}
CHECKPOINT_NAMES = {
    "mlp.fc2_weight": "w2.weight",
    "w_in_shared_FD.weight": "shared_expert.w1.weight",
    "w_swiglu_FD.weight": "shared_expert.w3.weight",
    "w_out_shared_DF.weight": "shared_expert.w2.weight",
}


def _unknown(name: str) -> InputError:
    return InputError(
        f"{name} is no tensor of Llama 4's text model: expected Meta's names, as "
        "layers.0.attention.wq.weight; give a checkpoint of that model."
    )
