"""Checks of chapter 20's exercises."""

import torch

from exercises import exercise, expect
from mllama_lite.alignment.measuring import ranks
from mllama_lite.families.efficientnet import ConvNorm
from mllama_lite.families.projectors import PoolingProjector


@exercise("numbers-that-learn")
def numbers_that_learn(answer):
    expect(isinstance(answer, int) and answer > 0, "a number of parameters is above 0")
    with torch.device("meta"):
        projector = PoolingProjector(1280, 192, 9)
    wanted = sum(p.numel() for p in projector.parameters())
    expect(answer == wanted, f"it is {answer / wanted:.4g} times what it has")


@exercise("rank-of-a-guess")
def rank_of_a_guess(answer):
    expect(isinstance(answer, (int, float)), "a rank is a number")
    # Each rank once: the own caption stands first, second, and so on to the last.
    costs = torch.arange(200.0).repeat(200, 1)  # [pictures, captions]
    for picture in range(200):
        costs[picture] = (costs[picture] - picture) % 200
        costs[picture, picture] = picture + 0.5
    tried = ranks(costs)["rank"]
    expect(
        abs(answer - tried) < 0.01, f"{answer} is not the mean of all ranks, each once"
    )


@exercise("padding-of-tensorflow")
@torch.no_grad()
def padding_of_tensorflow(padding):
    for size in (4, 5, 7, 8, 12):
        for kernel, stride in ((1, 1), (1, 2), (3, 1), (3, 2), (5, 1), (5, 2)):
            found = padding(size, kernel, stride)
            expect(
                isinstance(found, tuple)
                and len(found) == 2
                and all(isinstance(n, int) and n >= 0 for n in found),
                "it returns two whole numbers, 0 or more",
            )
            layer = ConvNorm(1, 1, kernel, stride, active=False).eval()
            image = torch.rand(1, 1, size, size)
            wide = torch.nn.functional.pad(image, (*found, *found))
            told = f"for {size} pixels, a kernel of {kernel} and a stride of {stride}"
            expect(wide.shape[2] >= kernel, f"{told}, the kernel does not fit")
            ours = layer.conv(wide) / (1 + layer.norm.eps) ** 0.5
            wanted = layer(image)
            expect(
                ours.shape == wanted.shape,
                f"{told}, the output has {ours.shape[2]} places",
            )
            expect(
                torch.allclose(ours, wanted, atol=1e-5), f"{told}, it looks elsewhere"
            )
            least = sum(found) <= max(0, kernel - 1)
            expect(least, f"{told}, more is added than a kernel needs")


@exercise("held-out-with-all-its-pictures")
def held_out_with_all_its_pictures(split):
    draw = torch.Generator().manual_seed(0)
    for amount in (8, 40, 300):
        numbers = torch.randint(max(4, amount // 8), (amount,), generator=draw).tolist()
        concepts = [f"thing {number}" for number in numbers]
        found = split(list(concepts))
        expect(
            isinstance(found, list) and len(found) == amount,
            "it returns a list that is as long",
        )
        expect(set(found) <= {"train", "unseen"}, "it says train or unseen")
        expect(len(set(found)) == 2, f"of {amount} pictures all are in one part")
        where = {}
        for concept, part in zip(concepts, found):
            where.setdefault(concept, set()).add(part)
        both = sum(len(parts) == 2 for parts in where.values())
        expect(not both, f"of {amount} pictures, {both} concepts are in both parts")


@exercise("cheap-captions")
def cheap_captions(found):
    draw = torch.Generator().manual_seed(1)
    for count in (3, 10, 30):
        alone = 20 * torch.rand(count, generator=draw)
        order = torch.randperm(count, generator=draw)
        costs = alone + torch.rand(count, count, generator=draw)
        costs[torch.arange(count), order] -= 2.0  # what each picture makes cheaper
        got = found(costs.clone(), alone.clone())
        expect(isinstance(got, torch.Tensor), "it returns a tensor")
        expect(got.shape == order.shape, f"the shape is {list(got.shape)}")
        right = (got == order).float().mean().item()
        expect(right == 1, f"of {count} pictures {right:.0%} get their caption")
