"""`mllama-lite info`: what a model is and needs, without loading it."""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllama_lite.cli.options import Text
from mllama_lite.errors import InputError, readable, shown


if TYPE_CHECKING:
    from mllama_lite.checkpoints.loading import LoadReport


SUMMARY = "what a model is and needs, without loading it"
WORDS = "[MODEL]"
MOST_WORDS = 1
DESCRIPTION = """\
Print what a model is and needs, without loading it.

MODEL is a hub id or a folder; without one it is the small shipped model.

--json prints one object and nothing else: "model" (the folder or hub id), "parameters",
"bytes" and "dtype"; "layout", "missing" and "unexpected" (names of tensors) and
"tokenizer" (whether there is one), all four null for a hub id, of which nothing but the
configuration is fetched; "text" and "vision", the configuration ("vision" is null for a
text-only model); "memory", a list of objects with "tokens", "images", "bytes" (of each
part) and "fits_on" (GiB of common cards).
"""
CARDS = (16, 24, 48, 80)  # GiB of memory of common GPUs


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--dtype", action=Text, help="compute memory for this dtype; default: as stored"
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object instead of lines"
    )


def run(options: Namespace) -> None:
    model = options.words[0] if options.words else None
    if model is not None and not model.strip():
        raise InputError(
            f"The model is {shown(model)}: expected a hub id or a folder; is a variable "
            "not set?"
        )
    facts, report = _facts(model, options.dtype)
    print(json.dumps(facts) if options.json else "\n".join(_lines(facts, report)))


def _facts(
    model: str | Path | None, dtype: str | None
) -> tuple[dict[str, Any], "LoadReport | None"]:
    """The dict that --json prints, and the LoadReport, None for a model on the hub."""
    import torch

    from mllama_lite.checkpoints.folders import read_config
    from mllama_lite.checkpoints.hub import find_folder, find_tokenizer
    from mllama_lite.checkpoints.loading import open_checkpoint
    from mllama_lite.cost import memory_needs
    from mllama_lite.devices import find_dtype

    wanted, report = find_dtype(dtype), None
    tensors: dict[str, Any] = dict.fromkeys(
        ("layout", "missing", "unexpected", "tokenizer")
    )
    if model is None or Path(model).is_dir():
        model = find_folder(model)
        checkpoint = open_checkpoint(model)
        config, report = checkpoint.config, checkpoint.report
        stored = report.dtype
        tensors = {name: getattr(report, name) for name in list(tensors)[:3]}
        tensors["tokenizer"] = find_tokenizer(model) is not None
    else:  # of a model on the hub its configuration is enough, and small
        config = read_config(find_folder(model, ["config.json"]))
        stored = torch.bfloat16
    used = wanted or stored or torch.float32
    text, images = config.text, 1 if config.vision else 0
    memory: list[dict[str, Any]] = []
    longest = text.max_position_embeddings
    for tokens in [n for n in (2048, 8192) if n <= longest] or [longest]:
        parts = memory_needs(config, used, tokens, images)
        fits = [card for card in CARDS if sum(parts.values()) < 0.95 * card * 2**30]
        memory.append(
            {"tokens": tokens, "images": images, "bytes": parts, "fits_on": fits}
        )
    size = memory[0]["bytes"]["weights"]
    facts = {
        "model": str(model),
        "parameters": report.num_parameters if report else size // used.itemsize,
        "bytes": size,
        "dtype": str(used).removeprefix("torch."),
        **tensors,
        "text": asdict(text),
        "vision": asdict(config.vision) if config.vision else None,
        "memory": memory,
    }
    return facts, report


def _lines(facts: dict[str, Any], report: "LoadReport | None") -> Iterator[str]:
    """What a person reads of it."""
    yield readable(facts["model"], 400)
    if report:
        yield str(report)
        for problem in ("missing", "unexpected"):
            for name in facts[problem][:5]:
                yield f"  {problem}: {readable(name, 400)}"
        yield f"tokenizer: {'yes' if facts['tokenizer'] else 'none in this folder'}"
    else:
        size = facts["bytes"] / 2**30
        yield f"{facts['parameters']:,} parameters, {size:.2f} GiB"
    text, vision = facts["text"], facts["vision"]
    cross = len(text["cross_attention_layers"])
    yield (
        f"text: {text['num_hidden_layers'] - cross} self-attention and {cross} "
        f"cross-attention layers, width {text['hidden_size']}, "
        f"{text['num_attention_heads']} query and {text['num_key_value_heads']} key "
        f"heads, {text['vocab_size']} tokens"
    )
    if vision:
        patches = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
        yield (
            f"vision: {vision['num_hidden_layers']} local and "
            f"{vision['num_global_layers']} global layers, width "
            f"{vision['hidden_size']}, tiles of {vision['image_size']} pixels, "
            f"{patches} tokens each"
        )
    for needs in facts["memory"]:
        sizes = {name: size / 2**30 for name, size in needs["bytes"].items()}
        parts = ", ".join(f"{name} {size:.2f}" for name, size in sizes.items())
        fits = ", ".join(f"{card} GiB" for card in needs["fits_on"]) or "none"
        yield (
            f"memory in {facts['dtype']} with {needs['tokens']} tokens and "
            f"{needs['images']} image: {sum(sizes.values()):.2f} GiB ({parts}); fits on "
            f"a card of: {fits}"
        )
