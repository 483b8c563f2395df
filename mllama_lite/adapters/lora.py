# Generated from notebooks/12_lora.ipynb: edit there, or here and run `make update`.
"""Low-rank adapters (LoRA): train two small matrices beside every chosen Linear.

Built in chapter 12, notebooks/12_lora.ipynb. The model's code knows nothing of this:
its layers are wrapped from outside.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from mllama_lite.errors import InputError, shown
from mllama_lite.model import Mllama


# What can be adapted, by what it is. {self} and {cross} stand for the indices of the
# self- and the cross-attention layers.
GROUPS = {
    "self": r"language_model\.model\.layers\.{self}\.self_attn\.[qkvo]_proj",
    "self.q": r"language_model\.model\.layers\.{self}\.self_attn\.q_proj",
    "self.k": r"language_model\.model\.layers\.{self}\.self_attn\.k_proj",
    "self.v": r"language_model\.model\.layers\.{self}\.self_attn\.v_proj",
    "self.o": r"language_model\.model\.layers\.{self}\.self_attn\.o_proj",
    "mlp": r"language_model\.model\.layers\.{self}\.mlp\.(gate|up|down)_proj",
    "mlp.gate": r"language_model\.model\.layers\.{self}\.mlp\.gate_proj",
    "mlp.up": r"language_model\.model\.layers\.{self}\.mlp\.up_proj",
    "mlp.down": r"language_model\.model\.layers\.{self}\.mlp\.down_proj",
    "cross": r"language_model\.model\.layers\.{cross}\.(cross_attn|mlp)\..*_proj",
    "vision.local": r"vision_model\.transformer\.layers\..*(_proj|fc1|fc2)",
    "vision.global": r"vision_model\.global_transformer\.layers\..*(_proj|fc1|fc2)",
    "projector": r"multi_modal_projector",
    "head": r"language_model\.lm_head",
}


class LowRank(nn.Module):
    """The two matrices of one adapter at one layer: x to scale · B A x.

    A begins random and B at zero, so a new adapter changes nothing.

    Args:
        in_features, out_features: of the layer it belongs to.
        rank: r, between the two matrices.
        alpha: the sum is multiplied by alpha / rank.
        dropout: share of the inputs set to 0 while training.
        device: of the matrices, which are always fp32.

    Source: Hu et al. 2022; first values as in PEFT's `LoraLayer.reset_lora_parameters`.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        settings: dict[str, Any] = {"dtype": torch.float32, "device": device}
        self.A = nn.Parameter(torch.empty(rank, in_features, **settings))
        self.B = nn.Parameter(torch.zeros(out_features, rank, **settings))
        self.dropout = nn.Dropout(dropout)
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank

    def first_values(self, generator: torch.Generator) -> None:
        """Fill A uniformly between -1 and 1 over the root of its inputs; B is 0."""
        bound = self.A.shape[1] ** -0.5
        values = torch.rand(self.A.shape, generator=generator) * 2 - 1
        with torch.no_grad():
            self.A.copy_(values * bound)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out], in fp32 or as autocast has it."""
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.A.dtype)  # else a copy of every input would be kept
        x = nn.functional.linear(self.dropout(x), self.A)
        return nn.functional.linear(x, self.B) * self.scale

    def product(self) -> torch.Tensor:
        """scale · B A, fp32 [out, in]: what the adapter adds to the weight."""
        return self.scale * (self.B @ self.A)


class LoRALinear(nn.Module):
    """A matrix layer as it was, plus the active ones of several adapters.

    Args:
        base: nn.Linear, or a quantised layer that says its `in_features` and
            `out_features` as a Linear does; kept as it is.

    Attributes:
        base: the same.
        adapters: ModuleDict from name to LowRank.
        active: names of the adapters that are added.
        merged: names of the adapters that are in the weight already.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base: Any = base  # a Linear, or what stands for one
        self.in_features: Any = base.in_features
        self.out_features: Any = base.out_features
        self.adapters: Any = nn.ModuleDict()  # of LowRank
        self.active: tuple[str, ...] = ()
        self.merged: tuple[str, ...] = ()
        self._unmerged_weight: torch.Tensor | None = None

    @property
    def weight(self) -> torch.Tensor:
        """The base's weight [out, in]."""
        return self.base.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's bias [out], or None."""
        return self.base.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out], dtype as the base gives it."""
        output = self.base(x)
        for name in self.active:
            if name not in self.merged and name in self.adapters:
                output = output + self.adapters[name](x).to(output.dtype)
        return output

    @torch.no_grad()
    def merge(self) -> None:
        """Add the active adapters to the base's weight; the weight before is kept.

        Raises:
            InputError: the base is no plain Linear, whose weight could take the sum.
        """
        self.unmerge()
        names = tuple(name for name in self.active if name in self.adapters)
        if names:
            if not isinstance(self.base, nn.Linear):
                raise InputError(
                    f"An adapter cannot be merged into a {type(self.base).__name__}: "
                    "expected plain Linear layers; keep it beside the weights, or merge "
                    "before quantising."
                )
            weight = self.base.weight
            total = sum(self.adapters[name].product() for name in names)
            self._unmerged_weight, self.merged = weight.data, names
            weight.data = (weight.float() + total).to(weight.dtype)

    def unmerge(self) -> None:
        """Put the weight back that was there before `merge`, bit for bit."""
        if self.merged:
            self.base.weight.data = self._unmerged_weight
            self._unmerged_weight, self.merged = None, ()


def find_targets(model: Mllama, targets: str | Sequence[str]) -> list[str]:
    """Names of the matrix layers that some groups or patterns stand for.

    Args:
        model: Mllama, with adapters or without.
        targets: keys of GROUPS, "all", or patterns of module names with * for any
            letters; one string or several.

    Returns:
        list of names, in the order of the model.

    Raises:
        InputError: a target that matches nothing, or something that is no matrix: no
            layer is left out in silence.
    """
    modules = dict(named_layers(model))
    groups = groups_of(model)
    targets = [targets] if isinstance(targets, str) else list(targets)
    if not targets:
        raise InputError(
            f"There are no targets: expected one or more of all, {', '.join(GROUPS)}, "
            "or patterns of module names; name some."
        )
    found = set()
    for target in targets:
        if target == "all":
            matching = [name for name in groups if groups[name][0] != "head"]
        elif target in GROUPS:
            matching = [name for name, of in groups.items() if target in of]
        else:
            matching = [name for name in modules if fnmatchcase(name, str(target))]
        if not matching:
            raise InputError(
                f"The target {shown(target)} matches no layer of this model: expected all, "
                f"{', '.join(GROUPS)}, or a pattern of module names such as "
                "*.self_attn.q_proj; correct it."
            )
        for name in matching:
            if not is_matrix(modules[name]):
                kind = type(modules[name]).__name__
                raise InputError(
                    f"The target {shown(target)} matches {name}, a {kind}: expected layers "
                    "with in_features and out_features alone, as a Linear has; make the "
                    "pattern narrower."
                )
        found.update(matching)
    return [name for name in modules if name in found]


def groups_of(model: Mllama) -> dict[str, list[str]]:
    """Which of GROUPS a layer belongs to: dict from its name to a list of keys."""
    text = model.config.text
    layers = {
        "self": "({})".format("|".join(map(str, text.self_attention_layers))),
        "cross": "({})".format("|".join(map(str, text.cross_attention_layers))),
    }
    patterns = {
        group: pattern.replace("{self}", layers["self"]).replace(
            "{cross}", layers["cross"]
        )
        for group, pattern in GROUPS.items()
    }
    found = {
        name: [group for group in GROUPS if re.fullmatch(patterns[group], name)]
        for name, _ in named_layers(model)
    }
    return {name: groups for name, groups in found.items() if groups}


def is_matrix(module: nn.Module | None) -> bool:
    """Whether a layer multiplies by a matrix, in whatever form it keeps it."""
    return hasattr(module, "in_features") and hasattr(module, "out_features")


def named_layers(model: Mllama) -> Iterator[tuple[str, nn.Module]]:
    """Modules by the names they have without adapters; nothing inside a wrapper."""
    inside = {
        id(part)
        for module in model.modules()
        if isinstance(module, LoRALinear)
        for part in module.modules()
        if part is not module
    }
    for name, module in model.named_modules():
        if name and id(module) not in inside:
            yield name, module


def lora_layers(model: Mllama) -> dict[str, LoRALinear]:
    """The wrapped layers of a model: dict from name to LoRALinear."""
    named = model.named_modules()
    return {name: module for name, module in named if isinstance(module, LoRALinear)}


def add_adapter(
    model: Mllama,
    targets: str | Sequence[str] = ("self", "mlp", "cross"),
    rank: int = 8,
    alpha: float | None = None,
    dropout: float = 0.0,
    name: str = "default",
    seed: int = 0,
    report: Callable[[str], object] | None = print,
) -> list[nn.Parameter]:
    """Give a model a new adapter and let nothing else be trained.

    Args:
        model: Mllama; its layers are wrapped in place.
        targets: see `find_targets`; one may end in a rank of its own, as head:64.
        rank: r of every other pair of matrices.
        alpha: the sum is multiplied by alpha / rank, with this rank for all pairs; None
            for twice the rank, so that the factor is 2 at every rank.
        dropout: share of an adapter's inputs set to 0 while training.
        name: of the adapter; it becomes the active one.
        seed: of the first values.
        report: called with a text that says which layers were taken and how many
            parameters train; None for silence.

    Returns:
        list of the adapter's parameters.

    Raises:
        InputError: see `find_targets`; a rank, alpha, dropout or seed that makes no
            sense; a rank above what a layer's matrix can have; a name that is taken or
            is not one word.
    """
    if type(rank) is not int or rank < 1:
        raise InputError(
            f"The rank is {shown(rank)}: expected a whole number, 1 or more; change it."
        )
    alpha = 2 * rank if alpha is None else alpha
    for what, value, fits, expected in (
        ("alpha", alpha, lambda x: 0 < x < math.inf, "a number above 0"),
        ("dropout", dropout, lambda x: 0 <= x < 1, "a number from 0 up to 1"),
    ):
        if type(value) not in (int, float) or not fits(value):
            raise InputError(
                f"{what} is {shown(value)}: expected {expected}; change it."
            )
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise InputError(
            f"The seed is {shown(seed)}: expected a whole number from 0 to 2^63 - 1; "
            "change it."
        )
    check_new_name(model, name)
    shapes = {}
    for layer, own in find_ranks(model, targets, rank).items():
        module: Any = model.get_submodule(layer)
        shape = module.in_features, module.out_features
        shapes[layer] = (*shape, own, alpha * own / rank, dropout)
    pairs = make_pairs(model, shapes)
    generator = torch.Generator().manual_seed(seed)
    for pair in pairs.values():
        pair.first_values(generator)
    put_adapter(model, name, pairs)
    use_adapters(model, name)
    parameters = train_only(model, name)
    if report:
        report(describe(model, name))
    return parameters


def find_ranks(
    model: Mllama, targets: str | Sequence[str], rank: int
) -> dict[str, int]:
    """The rank at every layer of some targets: dict from its name, in model order."""
    targets, ranks = [targets] if isinstance(targets, str) else list(targets), {}
    for target in targets:
        group, colon, own = str(target).partition(":")
        if colon and not re.fullmatch("[1-9][0-9]{0,8}", own):
            raise InputError(
                f"The target {shown(target)} ends in {shown(own)}: expected its rank, "
                "a whole number, 1 or more; correct it."
            )
        for layer in find_targets(model, group):
            ranks[layer] = int(own) if colon else rank
    for layer, wanted in ranks.items():
        module: Any = model.get_submodule(layer)
        shape = module.out_features, module.in_features
        if wanted > min(shape):
            raise InputError(
                f"The rank is {shown(wanted)} at {layer}, a matrix of {shape[0]} x "
                f"{shape[1]}: expected at most {min(shape)}, the rank that it can have "
                "itself; lower it, or give the layer one of its own, as head:64."
            )
    return {layer: ranks[layer] for layer in find_targets(model, list(ranks))}


def adapter_size(model: Mllama, targets: str | Sequence[str], rank: int) -> int:
    """How many parameters `add_adapter` would train; see there for what it raises."""
    ranks, size = find_ranks(model, targets, rank), 0
    for layer, own in ranks.items():
        module: Any = model.get_submodule(layer)
        size += own * (module.in_features + module.out_features)
    return size


def check_new_name(model: Mllama, name: str) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"\w+", name):
        raise InputError(
            f"The adapter's name is {shown(name)}: expected letters, digits and _; choose "
            "another."
        )
    if name in adapter_names(model):
        raise InputError(
            f"The model has an adapter named {name!r} already: expected a new name; "
            "choose another, or remove that one."
        )


def make_pairs(
    model: Mllama, shapes: dict[str, tuple[int, int, int, float, float]]
) -> dict[str, LowRank]:
    """A LowRank of each shape, where the layer is: dict from layer to it."""
    pairs = {}
    for layer, shape in shapes.items():
        module = model.get_submodule(layer)
        some = next(itertools.chain(module.parameters(), module.buffers()))
        pairs[layer] = LowRank(*shape, device=some.device)
    return pairs


def put_adapter(model: Mllama, name: str, pairs: dict[str, LowRank]) -> None:
    """Wrap layers where needed and give each its LowRank: all of them, or none.

    Raises:
        InputError: adapters are merged.
    """
    check_apart(model)
    for layer, pair in pairs.items():
        module = model.get_submodule(layer)
        if not isinstance(module, LoRALinear):
            module = LoRALinear(module)
            model.set_submodule(layer, module)
        module.adapters[name] = pair.train(model.training)


def adapter_names(model: Mllama) -> list[str]:
    """Names of all adapters that a model has, in the order they came."""
    layers = lora_layers(model).values()
    return list(dict.fromkeys(name for layer in layers for name in layer.adapters))


def train_only(model: Mllama, name: str) -> list[nn.Parameter]:
    """Let one adapter's matrices be trained and nothing else; returns them."""
    model.requires_grad_(False)
    pairs = [layer.adapters[name] for layer in layers_with(model, name).values()]
    return [p.requires_grad_(True) for pair in pairs for p in (pair.A, pair.B)]


def layers_with(model: Mllama, name: str) -> dict[str, LoRALinear]:
    """Wrapped layers that an adapter has a part in; unknown names are refused."""
    layers = lora_layers(model)
    there = {
        layer: module for layer, module in layers.items() if name in module.adapters
    }
    if not there:
        known = ", ".join(adapter_names(model)) or "none"
        raise InputError(
            f"There is no adapter named {name!r}: expected one that the model has "
            f"({known}); add or load it first."
        )
    return there


def describe(model: Mllama, name: str = "default") -> str:
    """Which layers an adapter is on, and how many parameters it has, as a text."""
    layers, groups = layers_with(model, name), groups_of(model)
    sizes = {
        n: sum(p.numel() for p in m.adapters[name].parameters())
        for n, m in layers.items()
    }
    rows: dict[str, list[str]] = {}
    for layer in layers:
        # The narrowest group that it belongs to comes last.
        rows.setdefault(groups[layer][-1], []).append(layer)
    lines = []
    for group, names in rows.items():
        count = sum(sizes[layer] for layer in names)
        lines.append(f"  {group:14} {len(names):4} layers {count:12,} parameters")
    whole = sum(p.numel() for p in base_parameters(model))
    total = sum(sizes.values())
    ranks = sorted({m.adapters[name].rank for m in layers.values()})
    first = f"adapter {name!r}, rank {', '.join(map(str, ranks))}:"
    last = f"  {total:,} parameters train, {total / whole:.2%} of the model's {whole:,}"
    return "\n".join([first, *lines, last])


def base_parameters(model: Mllama) -> list[nn.Parameter]:
    """The parameters that are not an adapter's."""
    mine = {
        id(parameter)
        for layer in lora_layers(model).values()
        for parameter in layer.adapters.parameters()
    }
    return [p for p in model.parameters() if id(p) not in mine]


def use_adapters(model: Mllama, *names: str) -> None:
    """Make these adapters the active ones, all together; without a name, none is.

    Raises:
        InputError: no adapter has that name; adapters are merged.
    """
    for name in names:
        layers_with(model, name)
    check_apart(model)
    for layer in lora_layers(model).values():
        layer.active = tuple(names)


def check_apart(model: Mllama) -> None:
    """Refuse a model whose adapters are merged into its weights."""
    if any(layer.merged for layer in lora_layers(model).values()):
        raise InputError(
            "Adapters are merged into the weights: expected them apart before others "
            "are chosen; call unmerge first."
        )


@contextmanager
def adapters_used(model: Mllama, *names: str) -> Iterator[None]:
    """For the length of a `with` block: these adapters, or without a name none."""
    before = {layer: layer.active for layer in lora_layers(model).values()}
    use_adapters(model, *names)
    try:
        yield
    finally:
        for layer, active in before.items():
            layer.active = active


def merge(model: Mllama) -> None:
    """Add the active adapters to the weights: no more cost than the model alone.

    The weights before are kept, so this takes the memory of the adapted layers once
    more until `unmerge` or `remove_adapters`.
    """
    for layer in lora_layers(model).values():
        layer.merge()


def unmerge(model: Mllama) -> None:
    """Put the weights back that were there before `merge`, bit for bit."""
    for layer in lora_layers(model).values():
        layer.unmerge()


def remove_adapters(model: Mllama) -> None:
    """Take all adapters off: a plain model again, with merged weights if they are.

    Merge first to keep what was learned, as for `save_model`.
    """
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.base)
