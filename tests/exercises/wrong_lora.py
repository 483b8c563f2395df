"""Wrong answers to chapter 12's exercises."""

import torch

Q, V, LAYERS = 4096 + 4096, 4096 + 1024, 32
RIGHT = {
    "rank-for-a-file": 100 * 2**20 // (4 * LAYERS * (Q + V)),
    "first-steps": "c",
}


# Two adapters into one pair.


def sums(first, second):
    return first.A + second.A, first.B + second.B


def without_scales(first, second):
    return torch.cat([first.A, second.A]), torch.cat([first.B, second.B], dim=1)


def scales_at_both(first, second):
    a = torch.cat([first.scale * first.A, second.scale * second.A])
    return a, torch.cat([first.scale * first.B, second.scale * second.B], dim=1)


def alphas_for_scales(first, second):
    b = [pair.alpha * pair.B for pair in (first, second)]
    return torch.cat([first.A, second.A]), torch.cat(b, dim=1)


def whole_matrix(first, second):
    total = first.product() + second.product()
    return total, torch.eye(len(total))


# A change of weights into a pair.


def cut(matrix, rank, at_a=0.0, at_b=1.0):
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return s[:rank, None] ** at_a * v[:rank], u[:, :rank] * s[:rank] ** at_b


def needed(matrix, share, power=2):
    carried = torch.linalg.svdvals(matrix).pow(power).cumsum(0)
    return int((carried < share * carried[-1]).sum()) + 1


def by_sums_and_not_squares(before, after, share):
    return cut(after - before, needed(after - before, share, power=1))


def of_the_model_after(before, after, share):
    return cut(after, needed(after, share))


def without_singular_values(before, after, share):
    return cut(after - before, needed(after - before, share), at_b=0.0)


def singular_values_twice(before, after, share):
    return cut(after - before, needed(after - before, share), 1.0, 1.0)


def one_direction_short(before, after, share):
    return cut(after - before, needed(after - before, share) - 1)


def everything(before, after, share):
    return cut(after - before, min(before.shape))


# First values of A.


def random_rows(gradient, rank):
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(gradient.shape[1], rank, generator=generator)
    return torch.linalg.qr(rows).Q.T


def left_directions(gradient, rank):
    return torch.linalg.svd(gradient).U[:, :rank].T


def smallest_directions(gradient, rank):
    return torch.linalg.svd(gradient, full_matrices=False).Vh[-rank:]


def longest_rows(gradient, rank):
    rows = gradient[gradient.norm(dim=1).topk(rank).indices]
    return torch.linalg.qr(rows.T).Q.T


def rows_not_of_length_one(gradient, rank):
    _, s, v = torch.linalg.svd(gradient, full_matrices=False)
    return s[:rank, None] * v[:rank]


WRONG = {
    "rank-for-a-file": [
        100 * 2**20 // (2 * LAYERS * (Q + V)),  # two bytes a number
        100 * 2**20 // (4 * LAYERS * 2 * Q),  # values as wide as queries
        100 * 2**20 // (16 * LAYERS * (Q + V)),  # what a training needs
        100 * 2**20 // (4 * (Q + V)),  # one layer
        62,  # rounded up
        61.5,
    ],
    "first-steps": ["a", "b", "d"],
    "narrow-pattern": [
        "*v_proj",
        "cross",
        "*cross_attn*",
        "*.[356].cross_attn.v_proj",  # some layers of some model
        "*.self_attn.v_proj",
        "cross_attn.v_proj",  # a name begins earlier
        3,
    ],
    "merge-two": [
        sums,
        without_scales,
        scales_at_both,
        alphas_for_scales,
        whole_matrix,
    ],
    "adapter-from-a-model": [
        by_sums_and_not_squares,
        of_the_model_after,
        without_singular_values,
        singular_values_twice,
        one_direction_short,
        everything,
    ],
    "best-first-step": [
        random_rows,
        left_directions,
        smallest_directions,
        longest_rows,
        rows_not_of_length_one,
    ],
    "where-to-adapt": [
        {"self": 8, "mlp": 8, "cross": 8},
        {"self": 8, "mlp": 12, "cross": 15},  # the other way round
        {"self": 15, "mlp": 10, "cross": 9},
        {"self": 15, "mlp": 10},
        [15, 10, 8],
    ],
}
