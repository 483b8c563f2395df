"""EfficientNet-Lite against the package that its weights come from, real and random ones."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch

from mllama_lite.errors import InputError
from mllama_lite.families.efficientnet import (
    ConvNorm,
    EfficientNet,
    EfficientNetConfig,
    Stage,
    fold_norms,
    load_efficientnet,
)

ENCODER = Path(__file__).resolve().parent.parent / "pictures" / "encoder"
WEIGHTS = ENCODER / "efficientnet-lite0.pth"
SEEDS = range(4)


@pytest.fixture(scope="module")
def package():
    """What `make pictures` has fetched beside the weights, or what is installed."""
    if importlib.util.find_spec("efficientnet_lite_pytorch") is None:
        if not (ENCODER / "efficientnet_lite_pytorch").is_dir():
            pytest.skip("needs efficientnet_lite_pytorch: run make pictures")
        sys.path.append(str(ENCODER))
    import efficientnet_lite_pytorch

    return efficientnet_lite_pytorch


def lively(model, seed):
    """Random numbers, also where a new norm has 0 and 1; nothing grows out of range."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 4:
            tensor.copy_(noise * (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith("running_var"):
            tensor.copy_(noise.exp())
        elif tensor.is_floating_point():
            tensor.copy_(0.3 * noise + name.endswith("weight"))
    return model.eval()


def largest(a, b):
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


def test_as_the_package_with_random_numbers(package):
    worst = spread = 0.0
    for seed in SEEDS:
        theirs = lively(package.EfficientNet.from_name("efficientnet-lite0"), seed)
        ours = load_efficientnet(theirs.state_dict())
        images = torch.randn(
            2, 3, 224, 224, generator=torch.Generator().manual_seed(seed)
        )
        wanted = theirs.extract_features(images)
        worst = max(worst, largest(ours(images), wanted))
        worst = max(worst, largest(ours.classify(images), theirs(images)))
        spread = max(spread, wanted.std().item())
    assert spread > 0.1
    assert worst <= 1e-4


def test_as_the_package_with_its_real_weights(package):
    if not WEIGHTS.is_file():
        pytest.skip("needs the weights: run make pictures")
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", str(WEIGHTS))
    ours = load_efficientnet(torch.load(WEIGHTS, weights_only=True))
    images = (
        torch.rand(3, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    )
    wanted = theirs.eval().extract_features(images)
    assert wanted.shape == (3, 1280, 7, 7) and wanted.max() > 1
    assert largest(ours(images), wanted) <= 1e-5
    assert largest(ours.patches(images)[:, 8], wanted[:, :, 1, 1]) <= 1e-5
    fold_norms(ours)
    assert largest(ours(images), wanted) <= 2e-4


def small(seed):
    draw = random.Random(seed)
    stages = tuple(
        Stage(
            draw.choice([1, 2]),
            draw.choice([3, 5]),
            draw.choice([1, 2]),
            draw.choice([1, 6]),
            draw.choice([8, 16]),
        )
        for _ in range(3)
    )
    return EfficientNetConfig(64, 8, stages, 24, 5)


def test_norms_can_be_folded():
    for seed in range(20):
        config = small(seed)
        model = lively(EfficientNet(config), seed).double()
        images = torch.randn(2, 3, 50, 64, dtype=torch.float64)
        before = model(images)
        fold_norms(model)
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())
        assert before.std() > 0.01 and largest(model(images), before) <= 1e-10
    with pytest.raises(InputError, match="eval mode"):
        fold_norms(EfficientNet(small(0)))


@pytest.mark.parametrize("size", [5, 6, 7, 8])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_padding_by_hand(size, stride, kernel):
    """Every output is the sum of the pixels that lie under the kernel, by its definition."""
    layer = ConvNorm(1, 1, kernel, stride, active=False).eval()
    layer.conv.weight.fill_(1.0)
    image = torch.arange(1.0, size * size + 1).view(1, 1, size, size)
    outputs = -(-size // stride)
    before = max((outputs - 1) * stride + kernel - size, 0) // 2
    for row in range(outputs):
        for column in range(outputs):
            top, left = row * stride - before, column * stride - before
            under = image[
                0, 0, max(top, 0) : top + kernel, max(left, 0) : left + kernel
            ].sum()
            got = layer(image)[0, 0, row, column] * (1 + 1e-3) ** 0.5
            assert abs(got - under) <= 1e-5 * under


def test_sizes_are_lite0s():
    with torch.device("meta"):
        model = EfficientNet(EfficientNetConfig())
    assert sum(p.numel() for p in model.parameters()) == 4_652_008
    assert len(model.blocks) == 16


def test_what_does_not_fit_is_named():
    state = EfficientNet(small(1)).state_dict()
    whole = EfficientNetConfig()
    with pytest.raises(InputError, match="expected an EfficientNet-Lite"):
        load_efficientnet(state, whole)
    with pytest.raises(InputError, match=r"_blocks\.0\._wrong\.weight and 0 more"):
        load_efficientnet(state | {"_blocks.0._wrong.weight": torch.ones(1)}, small(1))
