# Generated from notebooks/12_lora.ipynb: edit there, or here and run `make update`.
"""Adapters in files, in PEFT's own format: what is written here loads there, and back.

Built in chapter 12, notebooks/12_lora.ipynb.
"""

import json
import os
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from mllama_lite.adapters.lora import (
    LoRALinear,
    check_new_name,
    layers_with,
    named_layers,
    put_adapter,
    train_only,
    use_adapters,
)
from mllama_lite.errors import InputError


def hub_name(name):
    """A layer's name in transformers' model, which PEFT's files go by."""
    if name.startswith("language_model.lm_head"):
        return name.removeprefix("language_model.")
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    return "model." + name


def our_name(name):
    """The reverse of `hub_name`; names of transformers before 4.52 are known too."""
    if name.startswith("model.language_model."):
        return "language_model.model." + name.removeprefix("model.language_model.")
    if name.startswith("lm_head"):
        return "language_model." + name
    return name.removeprefix("model.")


def save_adapter(model, folder, name="default", base=None):
    """Write an adapter as PEFT does: adapter_config.json, adapter_model.safetensors.

    Both are written aside and then renamed.

    Args:
        model: Mllama with the adapter.
        folder: path; made if it is not there.
        name: of the adapter.
        base: hub id or folder of the model it belongs to, noted in the file; None if
            it has no name.

    Raises:
        InputError: no adapter has that name; the folder is a file.
    """
    layers, folder = layers_with(model, name), Path(folder)
    if folder.exists() and not folder.is_dir():
        raise InputError(
            f"{folder} is a file: expected a folder for the adapter; choose another "
            "name."
        )
    folder.mkdir(parents=True, exist_ok=True)
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
    part = folder / "adapter_model.part"
    save_file(tensors, part, {"format": "pt"})
    os.replace(part, folder / "adapter_model.safetensors")
    part = folder / "adapter_config.part"
    part.write_text(json.dumps(config, indent=2) + "\n")
    os.replace(part, folder / "adapter_config.json")


# PEFT's settings that change what an adapter computes, and values without effect.
PLAIN = {
    "peft_type": ("LORA",),
    "bias": ("none", None),
    "use_dora": (False, None),
    "use_qalora": (False, None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
}


def load_adapter(model, folder, name="default"):
    """Read an adapter that `save_adapter` or PEFT wrote, and make it the active one.

    Args:
        model: Mllama that it was made for.
        folder: path with adapter_config.json and adapter_model.safetensors.
        name: to call it by.

    Returns:
        list of its parameters; nothing else of the model is trained from now on.

    Raises:
        InputError: files are missing or damaged; a setting that is not plain LoRA;
            layers that the model does not have, or of another size.
    """
    folder = Path(folder)
    check_new_name(model, name)
    config, tensors = _read_adapter(folder)
    shapes, values = {}, {}
    modules = dict(named_layers(model))
    for key, tensor in tensors.items():
        if key.endswith(".base_layer.weight"):
            _check_copy(folder, modules, key, tensor)
            continue
        found = re.fullmatch(r"base_model\.model\.(.+)\.lora_([AB])\.weight", key)
        if not found:
            raise InputError(
                f"{folder} holds {key}: expected lora_A and lora_B of Linear layers "
                "alone; train the adapter without it."
            )
        values.setdefault(found[1], {})[found[2]] = tensor
    for theirs, pair in values.items():
        layer = our_name(theirs)
        if not isinstance(modules.get(layer), (nn.Linear, LoRALinear)):
            raise InputError(
                f"{folder} has an adapter for {theirs}: expected Linear layers of this "
                "model; use the model that it was trained on."
            )
        if pair.keys() != {"A", "B"}:
            raise InputError(
                f"{folder} has only one of the two matrices of {theirs}: expected "
                "both; save or download the adapter again."
            )
        rank, size = len(pair["A"]), tuple(modules[layer].weight.shape)
        if (len(pair["B"]), pair["A"].shape[1]) != size or pair["B"].shape[1] != rank:
            raise InputError(
                f"{folder} has matrices {list(pair['B'].shape)} and "
                f"{list(pair['A'].shape)} for {theirs}: expected a product of "
                f"{list(size)}; use the model that it was trained on."
            )
        alpha = _alpha(config, theirs)
        if config.get("use_rslora"):
            alpha *= rank**0.5  # it divides by the root of the rank
        dropout = config.get("lora_dropout") or 0.0
        shapes[layer] = (size[1], size[0], rank, alpha, dropout)
    pairs = put_adapter(model, name, shapes)
    with torch.no_grad():
        for theirs, pair in values.items():
            pairs[our_name(theirs)].A.copy_(pair["A"])
            pairs[our_name(theirs)].B.copy_(pair["B"])
    use_adapters(model, name)
    return train_only(model, name)


def _read_adapter(folder):
    """adapter_config.json as a dict, and the tensors; refused if not plain LoRA."""
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        if not (folder / file).is_file():
            raise InputError(
                f"{folder} has no {file}: expected the two files of a PEFT adapter; "
                "check the path."
            )
    try:
        config = json.loads((folder / "adapter_config.json").read_text())
        tensors = load_file(folder / "adapter_model.safetensors")
    except (ValueError, SafetensorError) as error:
        raise InputError(
            f"{folder} cannot be read ({error}): expected an adapter as PEFT writes "
            "it; save or download it again."
        ) from None
    alpha = config.get("lora_alpha") if isinstance(config, dict) else None
    if not isinstance(alpha, (int, float)):
        raise InputError(
            f"{folder} has lora_alpha {alpha!r} in adapter_config.json: expected a "
            "number; save or download the adapter again."
        )
    for setting, plain in PLAIN.items():
        if config.get(setting) not in plain:
            raise InputError(
                f"{folder} has {setting} {config.get(setting)!r}: expected "
                f"{plain[0]!r}, as plain LoRA has; train the adapter without it."
            )
    if not tensors:
        raise InputError(
            f"{folder} holds no matrices: expected some; save or download it again."
        )
    return config, tensors


def _check_copy(folder, modules, key, tensor):
    """PEFT stores the base of an adapted head too; it has to be this model's own."""
    layer = our_name(
        key.removeprefix("base_model.model.").removesuffix(".base_layer.weight")
    )
    weight = getattr(modules.get(layer), "weight", None)
    same = weight is not None and weight.shape == tensor.shape
    if not same or not torch.equal(weight.cpu(), tensor.to(weight.dtype)):
        raise InputError(
            f"{folder} holds another {layer}: expected the weights of this model; use "
            "the model that it was trained on."
        )


def _alpha(config, layer):
    """An adapter's alpha at one layer; patterns match the end of a name, as in PEFT."""
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return alpha
    return config["lora_alpha"]
