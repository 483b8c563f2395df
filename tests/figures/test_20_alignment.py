"""The figure of chapter 20 against the package."""

import itertools

import torch
import torch.nn.functional as F

from mllama_lite.families.efficientnet import ConvNorm


def under(size, convolve):
    """For each place of the middle output row, which pixels of a row it sees."""
    found = []
    for pixel in range(size):
        image = torch.zeros(1, 1, size, size)
        image[..., pixel] = 1.0
        found.append(convolve(image)[0, 0, 1] > 0)
    return torch.stack(found, 1)  # [places, size]


def test_kernel_places(figure):
    shown = figure("kernel_places")
    for size, kernel, stride in itertools.product((4, 7, 9), (3, 5), (2, 1)):
        shown.set("Pixels a side", size)
        shown.set("Kernel", str(kernel))
        shown.set("Stride", str(stride))
        layer = ConvNorm(1, 1, kernel, stride, active=False).eval()
        layer.conv.weight.fill_(1.0)
        even = lambda image, k=kernel, s=stride: F.conv2d(
            image, torch.ones(1, 1, k, k), stride=s, padding=k // 2
        )
        for way, convolve in (
            ("TensorFlow's", layer),
            ("the same on both sides", even),
        ):
            shown.set("Padding", way)
            want = under(size, convolve)
            places = shown.values()
            assert len(places) == len(want)
            for pixels, seen in zip(places, want):
                assert len(pixels) == kernel
                inside = [p for p in pixels if 0 <= p < size]
                assert inside == seen.nonzero()[:, 0].tolist()
            first = int(want[0].sum())
            assert f"and {len(want)} places come out" in shown.words()
            assert f"lies on {first} of the image's pixels" in shown.words()
