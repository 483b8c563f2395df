# Generated from notebooks/20_alignment.ipynb: edit there, or here and run `make update`.
"""A plain vision transformer (ViT-B/16), read from timm's layout or torchvision's.

Built in chapter 20, notebooks/20_alignment.ipynb. An image is its patches and, before
them, one learned class token; nothing else is in the encoder. Parameter names are
timm's, with query, key and value in one matrix.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.errors import InputError, shown


@dataclass(frozen=True)
class ViTConfig:
    """Sizes of a vision transformer; the defaults are ViT-B/16's, names `config.json`'s."""

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    layer_norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name, kind in self.__annotations__.items():
            value = getattr(self, name)
            if kind is int and (type(value) is not int or value < 1):
                raise InputError(
                    f"The configuration's {name} is {shown(value)}: expected a whole "
                    "number, 1 or more; correct it."
                )
        for whole, part in (
            ("hidden_size", "num_attention_heads"),
            ("image_size", "patch_size"),
        ):
            if getattr(self, whole) % getattr(self, part):
                raise InputError(
                    f"The configuration has {whole} {getattr(self, whole)} and {part} "
                    f"{getattr(self, part)}: expected a multiple; correct it."
                )

    @property
    def num_patches(self) -> int:
        """Patches of an image, without the class token."""
        return (self.image_size // self.patch_size) ** 2


class ViTAttention(nn.Module):
    """Every token attends to every token; one matrix makes query, key and value.

    Args:
        config: ViTConfig.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(size, 3 * size)
        self.proj = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, P, D] to [N, P, D]."""
        joined = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # [N, P, 3, H, E]
        query, key, value = joined.permute(2, 0, 3, 1, 4)  # each [N, H, P, E]
        output = F.scaled_dot_product_attention(query, key, value)
        return self.proj(output.transpose(1, 2).flatten(2))  # [N, P, D]


class ViTMLP(nn.Module):
    """Two linear maps with the exact (erf) GELU between them.

    Args:
        config: ViTConfig.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., D] to [..., D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class ViTLayer(nn.Module):
    """LayerNorm, attention, residual; LayerNorm, MLP, residual.

    Args:
        config: ViTConfig.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.norm1 = nn.LayerNorm(size, eps)
        self.attn = ViTAttention(config)
        self.norm2 = nn.LayerNorm(size, eps)
        self.mlp = ViTMLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, P, D] to [N, P, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """Cut an image into patches and turn each into a vector.

    Args:
        config: ViTConfig.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        patch = config.patch_size
        self.proj = nn.Conv2d(config.num_channels, config.hidden_size, patch, patch)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """[N, 3, S, S] to [N, P, D], row by row."""
        return self.proj(pixel_values).flatten(2).transpose(1, 2)


class ViT(nn.Module):
    """The encoder without its head.

    Args:
        config: ViTConfig.

    Source: Dosovitskiy et al. 2021; timm's and torchvision's `VisionTransformer`.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.num_patches, size))
        self.patch_embed = PatchEmbed(config)
        self.blocks = nn.ModuleList(
            ViTLayer(config) for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(size, config.layer_norm_eps)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Every token after the last norm, the class token first.

        Args:
            pixel_values: [N, 3, S, S].

        Returns:
            [N, 1 + P, D].
        """
        patches = self.patch_embed(pixel_values)
        first = self.cls_token.expand(len(patches), -1, -1)  # [N, 1, D]
        x = torch.cat([first, patches], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What goes to a projector: [N, 3, S, S] to [N, P, D], without the class token."""
        return self(pixel_values)[:, 1:]


# torchvision's names, and timm's for the same tensors.
_TORCHVISION = {
    "class_token": "cls_token",
    "encoder.pos_embedding": "pos_embed",
    "conv_proj.": "patch_embed.proj.",
    "encoder.ln.": "norm.",
    "ln_1.": "norm1.",
    "ln_2.": "norm2.",
    "self_attention.in_proj_": "attn.qkv.",
    "self_attention.out_proj.": "attn.proj.",
    "mlp.0.": "mlp.fc1.",
    "mlp.3.": "mlp.fc2.",
    "mlp.linear_1.": "mlp.fc1.",  # of checkpoints before 2022
    "mlp.linear_2.": "mlp.fc2.",
}
_HEAD = re.compile(r"(head|heads|pre_logits|head_dist)\.")


def timm_name(name: str) -> str | None:
    """The name that a tensor has here; None for one of the head.

    Args:
        name: timm's or torchvision's.
    """
    if _HEAD.match(name):
        return None
    layer = re.match(r"encoder\.layers\.encoder_layer_(\d+)\.", name)
    first = f"blocks.{layer[1]}." if layer else ""
    rest = name[layer.end() :] if layer else name
    for theirs, mine in _TORCHVISION.items():
        # The first norm of a layer and the encoder's last are told apart by their names.
        if rest == theirs or theirs.endswith((".", "_")) and rest.startswith(theirs):
            return first + mine + rest[len(theirs) :]
    return first + rest


def vit_config(state: Mapping[str, torch.Tensor]) -> ViTConfig:
    """The sizes of a checkpoint; heads are 64 wide, as in all that are published.

    Args:
        state: dict from timm's or torchvision's names to tensors.

    Returns:
        ViTConfig.

    Raises:
        InputError: the tensors that show the sizes are not there, or don't fit.
    """
    mine = {timm_name(name): tensor for name, tensor in state.items()}
    wanted = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    for name in wanted:
        if name not in mine:
            raise InputError(
                f"The weights have no {name}: expected a vision transformer in timm's "
                "layout or torchvision's; give such a checkpoint."
            )
    patch, places, fc1 = (mine[name] for name in wanted)
    if patch.ndim != 4 or places.ndim != 3 or fc1.ndim != 2:
        raise InputError(
            f"The weights' patches, places and MLP have {patch.ndim}, {places.ndim} and "
            f"{fc1.ndim} dimensions: expected 4, 3 and 2; give another checkpoint."
        )
    side = round(max(places.shape[1] - 1, 0) ** 0.5)
    if side * side != places.shape[1] - 1:
        raise InputError(
            f"The weights have {places.shape[1]} places: expected a class token and a "
            "square of patches; give a checkpoint with a class token."
        )
    layers = {m[1] for name in mine if (m := re.match(r"blocks\.(\d+)\.", name or ""))}
    return ViTConfig(
        image_size=side * patch.shape[2],
        patch_size=patch.shape[2],
        num_channels=patch.shape[1],
        hidden_size=patch.shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, patch.shape[0] // 64),
        intermediate_size=fc1.shape[0],
    )


def load_vit(state: Mapping[str, torch.Tensor], config: ViTConfig | None = None) -> ViT:
    """A ViT with the numbers of a checkpoint; a head is left out.

    Args:
        state: dict from timm's or torchvision's names to tensors.
        config: ViTConfig; None for the sizes that the tensors show, see `vit_config`.

    Returns:
        ViT in fp32, in eval mode.

    Raises:
        InputError: a tensor is missing, surplus, or of another shape; the first is named.
    """
    model = ViT(config or vit_config(state))
    found = {mine: state[name] for name in state if (mine := timm_name(name))}
    fill_exactly(model, found, "a vision transformer in timm's layout or torchvision's")
    return model


def fill_exactly(
    model: nn.Module, state: Mapping[str, torch.Tensor], expected: str
) -> None:
    """Load tensors into a model that has exactly these, and put it into eval mode.

    Args:
        model: its dtype stays.
        state: dict from the model's names to tensors.
        expected: what such a checkpoint is called, for the error.

    Raises:
        InputError: a tensor is missing, surplus, or of another shape; the first is named,
            with how many there are.
    """
    mine = model.state_dict()
    missing = [name for name in mine if name not in state]
    surplus = [name for name in state if name not in mine]
    other = [n for n in mine if n in state and mine[n].shape != state[n].shape]
    for names, problem in (
        (missing, "the weights lack it"),
        (surplus, "the model has no place for it"),
        (other, "it has another shape"),
    ):
        if names:
            first = names[0]
            shapes = (
                f" ({tuple(state[first].shape)} for {tuple(mine[first].shape)})"
                if names is other
                else ""
            )
            raise InputError(
                f"{first} and {len(names) - 1} more: {problem}{shapes}; expected "
                f"{expected}, of the model's sizes; give another checkpoint."
            )
    model.load_state_dict(dict(state))
    model.eval()
