"""Checks of chapter 12's exercises."""

import torch

from exercises import exercise, expect
from mllama_lite.adapters.lora import LowRank, adapter_size, find_targets
from mllama_lite.decoder import TextConfig
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import MllamaConfig, empty_model
from mllama_lite.vlm import load

MIB = 2**20


@exercise("rank-for-a-file")
def rank_for_a_file(answer):
    one = 4 * adapter_size(empty_model(MllamaConfig()), ("self.q", "self.v"), rank=1)
    expect(answer == int(answer), "a rank is a whole number")
    size = answer * one / MIB
    expect(size <= 100, f"at that rank the file has {size:.1f} MiB")
    expect((answer + 1) * one > 100 * MIB, "a higher rank fits as well")


@exercise("first-steps")
def first_steps(answer):
    pair, x = LowRank(2, 3, rank=1, alpha=2), torch.tensor([3.0, 1])
    with torch.no_grad():
        pair.A.zero_()
        pair.B.fill_(0.5)
    with torch.enable_grad():
        y = pair(x)
        y.sum().backward()
    changes, moving = bool(y.any()), "AB"[bool(pair.B.grad.any())]
    expect(answer in ("a", "b", "c", "d"), "the answer is one of the letters a to d")
    expect((answer in "ab") == changes, "what is a product one of whose factors is 0?")
    right = {(True, "A"): "a", (True, "B"): "b", (False, "A"): "c", (False, "B"): "d"}
    expect(
        answer == right[changes, moving],
        "write both gradients down: which factor does each go through?",
    )


def with_cross_attention_at(*layers):
    """A model of shapes alone, with 6 layers of text."""
    text = TextConfig(
        hidden_size=64, num_hidden_layers=6, cross_attention_layers=layers
    )
    vision = VisionConfig(hidden_size=32, attention_heads=2, num_hidden_layers=1)
    return empty_model(MllamaConfig(text, vision))


@exercise("narrow-pattern")
def narrow_pattern(pattern):
    expect(isinstance(pattern, str), "a pattern is a text")
    models = {
        "the small model": load(device="cpu").model,
        "a model with cross-attention in other layers": with_cross_attention_at(0, 4),
    }
    for called, model in models.items():
        wanted = {
            f"language_model.model.layers.{layer}.cross_attn.v_proj"
            for layer in model.config.text.cross_attention_layers
        }
        found = set(find_targets(model, pattern))
        more, missing = len(found - wanted), len(wanted - found)
        expect(not more, f"in {called} it catches {more} layers that it should not")
        expect(not missing, f"in {called} it misses {missing} of {len(wanted)} layers")


def random_pair(fan_in, fan_out, rank, alpha, generator):
    pair = LowRank(fan_in, fan_out, rank, alpha)
    with torch.no_grad():
        pair.A.normal_(generator=generator)
        pair.B.normal_(generator=generator)
    return pair


def matrices(result, fan_in, fan_out):
    """(A, B) of an answer, if they are a pair for a layer of this size."""
    good = isinstance(result, (tuple, list)) and len(result) == 2
    expect(good and all(map(torch.is_tensor, result)), "it returns no pair of tensors")
    a, b = (matrix.detach() for matrix in result)
    shapes = f"A is {list(a.shape)} and B {list(b.shape)}"
    fits = a.dim() == b.dim() == 2 and len(a) == b.shape[1]
    fits = fits and a.shape[1] == fan_in and len(b) == fan_out
    expect(fits, f"for {fan_in} inputs and {fan_out} outputs {shapes}")
    return a, b


@exercise("merge-two")
def merge_two(one_pair):
    generator = torch.Generator().manual_seed(0)
    for settings in (((2, 4), (2, 4)), ((2, 2), (3, 1)), ((1, 8), (2, 3))):
        pairs = [random_pair(9, 7, *setting, generator) for setting in settings]
        a, b = matrices(one_pair(*pairs), 9, 7)
        with torch.no_grad():
            off = (b @ a - sum(pair.product() for pair in pairs)).abs().max().item()
        told = ", ".join(f"rank {rank} and alpha {alpha}" for rank, alpha in settings)
        expect(off < 1e-4, f"for pairs of {told} it is {off:.1e} off")
        most = sum(rank for rank, _ in settings)
        expect(
            len(a) <= most, f"for pairs of {told} its rank is {len(a)}: less is enough"
        )


@exercise("adapter-from-a-model")
def adapter_from_a_model(adapter_of):
    generator = torch.Generator().manual_seed(0)
    for fan_in, fan_out, share in ((12, 9, 0.9), (8, 16, 0.5), (10, 10, 0.99)):
        before, after = 5 * torch.randn(2, fan_out, fan_in, generator=generator)
        left, values, right = torch.linalg.svd(after - before, full_matrices=False)
        after = before + left * 0.6 ** torch.arange(len(values)) @ right
        change = after - before
        carried = torch.linalg.svdvals(change).square().cumsum(0)
        wanted = int((carried < share * carried[-1]).sum()) + 1
        a, b = matrices(adapter_of(before, after, share), fan_in, fan_out)
        kept = 1 - ((change - b @ a).square().sum() / change.square().sum()).item()
        told = f"of a share of {share} asked for"
        expect(kept > share - 1e-3, f"{told} the pair carries {kept:.3f}")
        expect(len(a) == wanted, f"{told} a rank below {len(a)} is enough")


@exercise("best-first-step")
def best_first_step(first_a):
    generator = torch.Generator().manual_seed(0)
    for fan_in, fan_out, rank in ((12, 7, 3), (6, 20, 2), (9, 9, 1)):
        gradient = torch.randn(fan_out, fan_in, generator=generator)
        a = first_a(gradient.clone(), rank)
        expect(torch.is_tensor(a), "it returns no tensor")
        a, shape = a.detach(), [rank, fan_in]
        expect(
            list(a.shape) == shape,
            f"for rank {rank} and {fan_in} inputs A is {list(a.shape)}",
        )
        off = (a @ a.T - torch.eye(rank)).abs().max().item()
        expect(off < 1e-4, "the rows of A are not at right angles, of length 1")
        pair = LowRank(fan_in, fan_out, rank, alpha=rank)
        with torch.no_grad():
            pair.A.copy_(a)
        x = torch.eye(fan_in)  # so that the gradient at the weight is the one given
        with torch.enable_grad():
            (pair(x).T * gradient).sum().backward()
        step = -pair.B.grad @ a  # of B, with a learning rate of 1
        carried = torch.linalg.svdvals(gradient).square()
        most = (carried[:rank].sum() / carried.sum()).item()
        got = 1 - ((step + gradient).square().sum() / gradient.square().sum()).item()
        expect(
            got > most - 1e-3,
            f"the step makes {got:.0%} of the full one's squared norm: more can be had",
        )


@exercise("where-to-adapt")
def where_to_adapt(ranks):
    groups = ("self", "mlp", "cross")
    expect(
        isinstance(ranks, dict) and set(ranks) == set(groups),
        "expected a rank for self, mlp and cross",
    )
    model = load(device="cpu").model
    sizes = {group: adapter_size(model, group, rank) for group, rank in ranks.items()}
    told = ", ".join(f"{sizes[group]:,} at {group}" for group in groups)
    expect(len(set(sizes.values())) == 1, f"numbers that train: {told}")
    expect(min(ranks.values()) >= 8, "one of the ranks is below 8")
