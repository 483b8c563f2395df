# Generated from notebooks/16_text.ipynb: edit there, or here and run `make update`.
"""A language model in its folder, and what it writes.

Built in chapter 16, notebooks/16_text.ipynb.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mllama_lite.attention import KVCache
from mllama_lite.errors import InputError, shown
from mllama_lite.families.llama4 import Llama4, Llama4Config
from mllama_lite.files import system_errors, written_aside
from mllama_lite.generation import Sampler, Sampling
from mllama_lite.rope import RopeScaling


def save_text_model(model: Llama4, folder: str | PathLike) -> None:
    """Write a model's numbers in bf16 and its configuration into a folder."""
    folder = Path(folder)
    state = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    with written_aside(folder / "model.safetensors") as part:
        save_file(state, part, {"format": "pt"})
    with written_aside(folder / "config.json") as part:
        text = json.dumps(asdict(model.config), indent=2) + "\n"
        part.write_text(text, encoding="utf-8")


def read_text_config(
    path: str | PathLike, vocab_size: int | None = None
) -> Llama4Config:
    """A Llama4Config from a JSON file; what it does not name is Scout's.

    Args:
        path: of the file.
        vocab_size: used where the file names none.

    Raises:
        InputError: the file is no JSON object, or has a field that is none.
    """
    with system_errors(path, "read"):
        text = Path(path).read_text(encoding="utf-8", errors="replace")
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise InputError(
            f"{path} is no JSON object: expected the fields of a Llama4Config; correct "
            "it."
        ) from None
    like = vars(Llama4Config())
    for name, value in found.items():
        mine = like.get(name)
        if isinstance(mine, bool):
            fits = isinstance(value, bool)
        elif name == "rope_scaling":
            fits = value is None or isinstance(value, dict)
        elif isinstance(mine, int):
            fits = type(value) is int and value < 2**40
        else:
            fits = type(value) in (int, float) and 0 <= value < 2**40
        if name not in like or not fits:
            raise InputError(
                f"{path} has {shown(name)}: {shown(value)}: expected fields of a "
                "Llama4Config, with its kinds of values; correct it."
            )
    if found.get("rope_scaling"):
        scaling = found["rope_scaling"]
        try:
            if not all(type(v) in (int, float) and v > 0 for v in scaling.values()):
                raise TypeError
            found["rope_scaling"] = RopeScaling(**scaling)
        except TypeError:
            raise InputError(
                f"{path} has another rope_scaling: expected numbers above 0 for "
                f"{', '.join(vars(RopeScaling()))}; correct it."
            ) from None
    if vocab_size is not None:
        found.setdefault("vocab_size", vocab_size)
    return Llama4Config(**found)


def load_text_model(folder: str | PathLike) -> Llama4:
    """Read a model that `save_text_model` wrote; its numbers become fp32.

    Raises:
        InputError: a file is missing or damaged; the two files do not fit.
    """
    folder = Path(folder)
    model = Llama4(read_text_config(folder / "config.json"))
    path = folder / "model.safetensors"
    with system_errors(path, "read"):
        path.stat()
        try:
            state = load_file(path)
        except SafetensorError as error:
            raise InputError(
                f"{path} cannot be read ({error}): expected a safetensors file; get it "
                "again."
            ) from None
    if model.config.tie_word_embeddings:
        state["lm_head.weight"] = state.get("model.embed_tokens.weight", torch.empty(0))
    try:
        model.load_state_dict({name: t.float() for name, t in state.items()})
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise InputError(
            f"{path} does not fit its config.json ({first}): expected the numbers of "
            "that model; get both again."
        ) from None
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def write(
    model: Llama4,
    tokens: list[int],
    max_new_tokens: int = 64,
    stop_ids: tuple[int, ...] = (),
    sampling: Sampling = Sampling(),
) -> Iterator[int]:
    """Write on after some tokens, one at a time.

    Args:
        model: Llama4.
        tokens: list of T ids, at least one.
        max_new_tokens: at most so many.
        stop_ids: ids after which to stop; they are not given.
        sampling: Sampling.

    Yields:
        int, the next token's id.

    Raises:
        InputError: there is no token to begin with.
    """
    if not tokens:
        raise InputError(
            "There is no token to write on from: expected at least one; begin with "
            "<|end_of_text|>, which is where a document begins."
        )
    sampler, cache = Sampler(sampling, model.device), KVCache(len(tokens))
    here = torch.tensor([tokens], device=model.device)
    for _ in range(max_new_tokens):
        cache.reserve(cache.length + here.shape[1])
        last = torch.tensor([here.shape[1] - 1], device=model.device)
        chosen = sampler(model(here, cache, logits_at=last)[:, 0])
        if chosen.item() in stop_ids:
            return
        yield int(chosen)
        here = chosen[:, None]
