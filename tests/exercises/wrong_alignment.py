"""Wrong answers to chapter 20's exercises."""

RIGHT = {"numbers-that-learn": 247040, "rank-of-a-guess": 100.5}


def even(size, kernel, stride):
    """PyTorch's usual one: the same on both sides."""
    return kernel // 2, kernel // 2


def odd_before(size, kernel, stride):
    places = -(-size // stride)
    more = max((places - 1) * stride + kernel - size, 0)
    return more - more // 2, more // 2


def below_zero(size, kernel, stride):
    more = (-(-size // stride) - 1) * stride + kernel - size
    return more // 2, more - more // 2


def by_picture(concepts):
    """Every fourth picture, whatever it shows."""
    return ["unseen" if i % 4 == 0 else "train" for i in range(len(concepts))]


WRONG = {
    "numbers-that-learn": [245760, 1280 * 192 + 192, 9 * 247040, 0, "247040"],
    "rank-of-a-guess": [100, 101, 1, 200, "100.5"],
    "padding-of-tensorflow": [even, odd_before, below_zero, lambda *sizes: (0, 0)],
    "held-out-with-all-its-pictures": [
        by_picture,
        lambda concepts: ["train"] * len(concepts),
        lambda concepts: ["held out"] * len(concepts),
    ],
    "cheap-captions": [
        lambda costs, alone: costs.argmin(1),
        lambda costs, alone: (costs - alone).argmax(1),
        lambda costs, alone: (costs - alone).argmin(0),
        lambda costs, alone: (costs - alone[:, None]).argmin(1),
    ],
}
