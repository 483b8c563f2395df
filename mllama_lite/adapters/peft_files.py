# Generated from notebooks/12_lora.ipynb: edit there, or here and run `make update`.
"""Adapters in files, in PEFT's own format: what is written here loads there, and back.

Built in chapter 12, notebooks/12_lora.ipynb. A model is changed only when everything
about a file has been found right; one that is refused leaves no trace.
"""

import base64
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from mllama_lite.adapters.lora import (
    base_parameters,
    check_apart,
    check_new_name,
    is_matrix,
    layers_with,
    make_pairs,
    named_layers,
    put_adapter,
    train_only,
    use_adapters,
)
from mllama_lite.checkpoints.tensor_files import StoredTensor, read_safetensors
from mllama_lite.errors import InputError, shown
from mllama_lite.files import (
    ANY_TEXT,
    FLAG,
    as_path,
    check_fields,
    exists,
    list_of,
    make_folder,
    maybe,
    number,
    object_of,
    one_of,
    read_json,
    whole,
    write_json,
    written_aside,
)
from mllama_lite.model import Mllama


def hub_name(name: str) -> str:
    """A layer's name in transformers' model, which PEFT's files go by."""
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    return "model." + name


def our_name(name: str) -> str:
    """The reverse of `hub_name`; names of transformers before 4.52 are known too."""
    if name.startswith("model.language_model."):
        return "language_model.model." + name.removeprefix("model.language_model.")
    if name.startswith("lm_head"):
        return "language_model." + name
    return name.removeprefix("model.")


# The note in which `save_adapter` keeps the sample of the model.
SAMPLE = "sample_of_base"


def sample_of_base(model: Mllama, each: int = 4) -> torch.Tensor:
    """Some numbers of every parameter of a model, without its adapters.

    Two models of one size differ in nearly all of them. They are no checksum: a model
    that was changed elsewhere alone is not noticed.

    Args:
        model: Mllama whose adapters are not merged.
        each: how many numbers of a parameter, evenly spread.

    Returns:
        fp32 [each · number of parameters], on the CPU.
    """
    samples = []
    for parameter in base_parameters(model):
        places = [parameter.numel() * (2 * i + 1) // (2 * each) for i in range(each)]
        flat = parameter.detach().flatten()
        samples.append(flat[torch.tensor(places, device=flat.device)].float().cpu())
    return torch.cat(samples)


def _check_sample(folder: Path, model: Mllama, noted: str | None) -> None:
    """Compare a model with the one of which a file has a sample, up to bf16's rounding."""
    if noted is None:
        return  # written by PEFT, which notes nothing of the kind
    mine = sample_of_base(model)
    try:
        data = bytearray(base64.b64decode(noted, validate=True))
        theirs = torch.frombuffer(data, dtype=torch.float32)
    except ValueError:
        theirs = mine[:0]
    if theirs.shape != mine.shape or not torch.allclose(
        theirs, mine, rtol=2**-8, atol=1e-6, equal_nan=True
    ):
        raise InputError(
            f"{folder} belongs to another model of the same size: expected the one that "
            "it was trained on, whose numbers it has noted; load that one."
        )


def save_adapter(
    model: Mllama,
    folder: Path | str,
    name: str = "default",
    base: Path | str | None = None,
) -> None:
    """Write an adapter as PEFT does: adapter_config.json, adapter_model.safetensors.

    Both are written aside and then renamed. A sample of the model's own numbers is
    noted in the second, so that `load_adapter` can tell another model of the same size.

    Args:
        model: Mllama with the adapter; if it is merged, no sample is noted.
        folder: path; made if it is not there.
        name: of the adapter.
        base: hub id or folder of the model it belongs to, noted in the file; None if
            it has no name.

    Raises:
        InputError: no adapter has that name; the folder is a file; the system doesn't
            let it be written.
    """
    layers, folder = layers_with(model, name), make_folder(folder)
    pairs = {hub_name(layer): module.adapters[name] for layer, module in layers.items()}
    tensors = {}
    for layer, pair in pairs.items():
        prefix = f"base_model.model.{layer}"
        tensors[f"{prefix}.lora_A.weight"] = pair.A.detach().cpu().contiguous()
        tensors[f"{prefix}.lora_B.weight"] = pair.B.detach().cpu().contiguous()
    some = next(iter(pairs.values()))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": None if base is None else str(base),
        "r": some.rank,
        "lora_alpha": some.alpha,
        "lora_dropout": some.dropout.p,
        "target_modules": list(pairs),
        "rank_pattern": {n: p.rank for n, p in pairs.items() if p.rank != some.rank},
        "alpha_pattern": {
            n: p.alpha for n, p in pairs.items() if p.alpha != some.alpha
        },
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "task_type": None,
    }
    notes = {}  # at most one: safetensors writes several in any order
    if not any(layer.merged for layer in layers.values()):
        sample = sample_of_base(model).numpy().tobytes()
        notes[SAMPLE] = base64.b64encode(sample).decode()
    with written_aside(folder / "adapter_model.safetensors") as part:
        save_file(tensors, part, notes)
    write_json(config, folder / "adapter_config.json")


# Entries of adapter_config.json. All but the first eight would change what an adapter
# computes, so they may only have values without effect.
RANK = whole(1, 2**20)
ALPHA = number(1e-6, 1e6)
MANY = 2000  # patterns; the 90B has 942 layers that can be adapted
NOTHING = (list_of(one_of(), most=0), object_of(one_of(), most=0))
ADAPTER_FIELDS = {
    "base_model_name_or_path": maybe(ANY_TEXT),
    "r": maybe(RANK),
    "rank_pattern": maybe(object_of(RANK, MANY)),
    "lora_alpha": ALPHA,
    "alpha_pattern": maybe(object_of(ALPHA, MANY)),
    "lora_dropout": maybe(number(0, 1)),
    "use_rslora": maybe(FLAG),
    "init_lora_weights": maybe(FLAG, one_of("gaussian", "orthogonal", "eva")),
    "peft_type": one_of("LORA"),
    "bias": maybe(one_of("none")),
    "fan_in_fan_out": maybe(one_of(False)),
    "use_dora": maybe(one_of(False)),
    "use_qalora": maybe(one_of(False)),
    "lora_bias": maybe(one_of(False)),
    "modules_to_save": maybe(*NOTHING),
    "trainable_token_indices": maybe(*NOTHING),
    "target_parameters": maybe(*NOTHING),
    "layer_replication": maybe(*NOTHING),
    "alora_invocation_tokens": maybe(*NOTHING),
}


# A pattern that is a plain name, and one that may be searched for without danger: `.*`
# stands in it once at most, and nothing else but digits is repeated.
PLAIN = re.compile(r"[\w-]+(\.[\w-]+)*")
SAFE = re.compile(r"\^?([\w.-]|\\\.|\\d\+?)*(\.\*)?([\w.-]|\\\.|\\d\+?)*\$?")
MOST_SAFE = 100  # patterns that are no plain names
Patterns = list[tuple[Callable[[str], object], float]]  # whether one matches, value


def _read_patterns(folder: Path, setting: str, patterns: dict[str, float]) -> Patterns:
    """A list of (function that says whether a layer matches, value), in their order.

    In PEFT, patterns are regular expressions for the end of a layer's name, and the
    first that matches counts. One from somebody else can be made to compute for ages.
    """
    found: Patterns = []
    others = 0
    for pattern, value in patterns.items():
        if PLAIN.fullmatch(pattern):
            found.append((_ends(pattern), value))
            continue
        others += 1
        if len(pattern) > 200 or not SAFE.fullmatch(pattern) or others > MOST_SAFE:
            raise InputError(
                f"{folder} has {shown(pattern)} in {setting}: expected a layer's name or "
                r"its end, in which \d+ and one .* may stand, and at most "
                f"{MOST_SAFE} that are no plain names; write the names out."
            )
        found.append((re.compile(rf"(.*\.)?({pattern})$").match, value))
    return found


def _ends(name: str) -> Callable[[str], bool]:
    return lambda layer: f".{layer}".endswith(f".{name}")


def _value(patterns: Patterns, layer: str, otherwise: float) -> float:
    """The value of the first pattern that matches a layer."""
    return next((value for matches, value in patterns if matches(layer)), otherwise)


def load_adapter(
    model: Mllama, folder: Path | str, name: str = "default"
) -> list[nn.Parameter]:
    """Read an adapter that `save_adapter` or PEFT wrote, and make it the active one.

    Args:
        model: Mllama that it was made for.
        folder: path with adapter_config.json and adapter_model.safetensors.
        name: to call it by.

    Returns:
        list of its parameters; nothing else of the model is trained from now on.

    Raises:
        InputError: files are missing or damaged; a setting that is not plain LoRA;
            layers that the model does not have, or of another size; numbers that are
            none; another model than it was made for, where the file can tell. The model
            is as it was before.
    """
    folder = as_path(folder, "an adapter's folder")
    check_new_name(model, name)
    check_apart(model)
    config, tensors, notes = _read_adapter(folder)
    modules: dict[str, Any] = dict(named_layers(model))
    stored = _matrices(folder, modules, tensors)
    _check_sample(folder, model, notes.get(SAMPLE))
    ranks, alphas = (
        _read_patterns(folder, setting, config.get(setting, {}))
        for setting in ("rank_pattern", "alpha_pattern")
    )
    shapes, values = {}, {}
    for layer, (theirs, pair) in stored.items():
        rows, columns = modules[layer].out_features, modules[layer].in_features
        rank = pair["A"].shape[0]
        wanted = _value(ranks, theirs, config.get("r", rank))
        if pair["B"].shape != (rows, rank) or pair["A"].shape != (wanted, columns):
            raise InputError(
                f"{folder} has matrices {list(pair['B'].shape)} and "
                f"{list(pair['A'].shape)} for {theirs}: expected {[rows, wanted]} and "
                f"{[wanted, columns]}; use the model that it was trained on."
            )
        alpha = _value(alphas, theirs, config["lora_alpha"])
        if config.get("use_rslora"):
            alpha *= rank**0.5  # it divides by the root of the rank
        dropout = config.get("lora_dropout", 0.0)
        shapes[layer] = (columns, rows, rank, alpha, dropout)
        values[layer] = {key: tensor.read().float() for key, tensor in pair.items()}
        if not all(value.isfinite().all() for value in values[layer].values()):
            raise InputError(
                f"{folder} has NaN or infinity in the matrices of {theirs}: expected "
                "numbers; train the adapter anew, or download it again."
            )
    pairs = make_pairs(model, shapes)
    with torch.no_grad():
        for layer, added in pairs.items():
            added.A.copy_(values[layer]["A"])
            added.B.copy_(values[layer]["B"])
    put_adapter(model, name, pairs)
    use_adapters(model, name)
    return train_only(model, name)


def _read_adapter(
    folder: Path,
) -> tuple[dict[str, Any], dict[str, StoredTensor], dict[str, str]]:
    """(entries of adapter_config.json, tensors, notes beside them), each checked."""
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not exists(folder / file):
            raise InputError(
                f"{folder} has no {file}: expected the two files of a PEFT adapter; "
                "check the path."
            )
    path = folder / "adapter_config.json"
    config = check_fields(read_json(path), ADAPTER_FIELDS, path)
    tensors, notes = read_safetensors(folder / "adapter_model.safetensors")
    if not tensors:
        raise InputError(
            f"{folder} holds no matrices: expected some; save or download it again."
        )
    return config, tensors, notes


def _matrices(
    folder: Path, modules: dict[str, nn.Module], tensors: dict[str, StoredTensor]
) -> dict[str, tuple[str, dict[str, StoredTensor]]]:
    """Where the matrices of each layer are: dict from our name to (PEFT's, A and B)."""
    found: dict[str, tuple[str, dict[str, StoredTensor]]] = {}
    for key, tensor in tensors.items():
        if key.endswith(".base_layer.weight"):
            _check_copy(folder, modules, key, tensor)
            continue
        parts = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        if not parts:
            raise InputError(
                f"{folder} holds {key}: expected lora_A and lora_B of Linear layers "
                "alone; train the adapter without it."
            )
        theirs, matrix = parts.groups()
        layer = our_name(theirs)
        if not is_matrix(modules.get(layer)):
            raise InputError(
                f"{folder} has an adapter for {theirs}: expected Linear layers of this "
                "model; use the model that it was trained on."
            )
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            raise InputError(
                f"{folder} has shape {list(tensor.shape)} for {key}: expected a matrix; "
                "save or download the adapter again."
            )
        known, pair = found.setdefault(layer, (theirs, {}))
        if known != theirs:
            raise InputError(
                f"{folder} names one layer in two ways, {known} and {theirs}: expected "
                "each layer once; save it again with one version of transformers."
            )
        pair[matrix] = tensor
    for theirs, pair in found.values():
        if pair.keys() != {"A", "B"}:
            raise InputError(
                f"{folder} has only one of the two matrices of {theirs}: expected "
                "both; save or download the adapter again."
            )
    return found


def _check_copy(
    folder: Path, modules: dict[str, nn.Module], key: str, tensor: StoredTensor
) -> None:
    """PEFT stores the base of an adapted head too; it has to be this model's own."""
    layer = our_name(
        key.removeprefix("base_model.model.").removesuffix(".base_layer.weight")
    )
    weight: Any = getattr(modules.get(layer), "weight", None)
    same = weight is not None and weight.shape == tensor.shape
    if not same or not torch.equal(weight.cpu(), tensor.read().to(weight.dtype)):
        raise InputError(
            f"{folder} holds another {layer}: expected the weights of this model; use "
            "the model that it was trained on."
        )
