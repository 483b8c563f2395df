# Generated from notebooks/20_alignment.ipynb: edit there, or here and run `make update`.
"""A language model that is shown pictures: what stands for them, and what it then writes.

Built in chapter 20, notebooks/20_alignment.ipynb. The parts come from elsewhere: a
language model that takes vectors in the place of tokens, a projector, and what an
encoder saw. Here they speak as one, learn in part, and are kept.
"""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from mllama_lite.adapters.lora import make_pairs, put_adapter, train_only, use_adapters
from mllama_lite.alignment.examples import IMAGE, Example, make_batch, question_tokens
from mllama_lite.alignment.features import Features
from mllama_lite.attention import KVCache
from mllama_lite.errors import InputError, shown
from mllama_lite.families.projectors import MLPProjector, PoolingProjector
from mllama_lite.files import system_errors, written_aside
from mllama_lite.tokenizer import Tokenizer


PROJECTOR, MODEL = "projector.safetensors", "model.safetensors"
PROJECTORS = ("pooled", "patches")
POOLED = 9  # vectors of a picture


def new_projector(kind: str, size: int, text_size: int, seed: int) -> nn.Module:
    """A projector with random numbers.

    Args:
        kind: "pooled": means of neighbouring places, 9 vectors; "patches": every place by
            itself, through two matrices.
        size: D of the encoder.
        text_size: D of the language model.
        seed: of the numbers.

    Returns:
        Module, [N, P, D of the encoder] to [N, m, D of the language model].
    """
    if kind not in PROJECTORS:
        raise InputError(
            f"The projector is {shown(kind)}: expected one of {', '.join(PROJECTORS)}; "
            "choose one."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "patches":
            return MLPProjector(size, text_size)
        return PoolingProjector(size, text_size, POOLED)


def projector_of(folder: Path, size: int, text_size: int) -> nn.Module:
    """A projector of the kind that a folder of `save_speaker` holds; see `load_speaker`."""
    with (
        system_errors(folder / PROJECTOR, "read"),
        safe_open(folder / PROJECTOR, "pt") as file,
    ):
        kind = "patches" if "linear_1.weight" in file.keys() else "pooled"
    return new_projector(kind, size, text_size, 0)


class Speaker:
    """A language model, a projector, and what an encoder saw.

    Args:
        model: LanguageModel without cross-attention, or Llama4: called with `embeddings`
            and a `cache`, with `model.embed_tokens` and `lm_head`.
        projector: Module, [N, P, D of the encoder] to [N, m, D of the model].
        features: Features.
        tokenizer: Tokenizer.
    """

    def __init__(
        self, model: Any, projector: nn.Module, features: Features, tokenizer: Tokenizer
    ) -> None:
        self.model, self.projector = model, projector
        self.features, self.tokenizer = features, tokenizer

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.model.lm_head.weight.device

    def see(self, paths: Sequence[Path]) -> torch.Tensor:
        """The vectors that stand for some pictures, [N, m, D]."""
        if not paths:  # text alone
            return torch.zeros(0, 1, 1, device=self.device)
        return self.projector(self.features.of(paths).to(self.device))

    def losses(
        self, examples: Sequence[Example], images: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the answers of some examples cost.

        Args:
            examples: list of B Example.
            images: [N, m, D], their pictures in order.

        Returns:
            (losses, counts): fp32 [B] nats of each answer, and its number of tokens.
        """
        batch = make_batch(examples, self.model.model.embed_tokens, images)
        hidden = self.model.model(None, embeddings=batch.embeddings)  # [B, T, D]
        wanted = batch.labels >= 0
        logits = self.model.lm_head(hidden[wanted]).float()
        told = F.cross_entropy(logits, batch.labels[wanted], reduction="none")
        row = wanted.nonzero()[:, 0]
        sums = torch.zeros(len(examples), device=told.device).index_add(0, row, told)
        return sums, wanted.sum(1)

    @torch.no_grad()
    def write(self, paths: Sequence[Path], question: str, most: int = 24) -> str:
        """What is written about some pictures, the likeliest token each time.

        Args:
            paths: of the pictures.
            question: with PLACE for each; PLACE alone asks for a caption.
            most: tokens.
        """
        end = self.tokenizer.special["<|end_of_text|>"]
        given = [end, *question_tokens(question, self.tokenizer)]
        if given.count(IMAGE) != len(paths):
            raise InputError(
                f"The question has {given.count(IMAGE)} places for {len(paths)} "
                "pictures: expected one for each; write <image> where one stands."
            )
        example = Example(tuple(paths), given, [-100] * len(given))
        embedding = self.model.model.embed_tokens
        here = make_batch([example], embedding, self.see(paths)).embeddings
        cache, written = KVCache(here.shape[1] + most), []
        for _ in range(most):
            last = torch.tensor([here.shape[1] - 1], device=self.device)
            logits = self.model(None, cache, logits_at=last, embeddings=here)
            chosen = logits[:, 0].argmax(-1)
            if chosen.item() == end:
                break
            written.append(int(chosen))
            here = embedding(chosen)[:, None]  # [1, 1, D]
        return self.tokenizer.decode(written).strip()


def add_lora(model: Any, rank: int, seed: int) -> nn.ModuleDict:
    """Give every matrix of a language model's layers a pair of low rank, all trained.

    Args:
        model: LanguageModel or Llama4; its layers are wrapped in place, see chapter 12.
        rank: r.
        seed: of the first values.

    Returns:
        ModuleDict of the pairs.
    """
    shapes = {
        name: (part.in_features, part.out_features, rank, 2.0 * rank, 0.0)
        for name, part in model.named_modules()
        if isinstance(part, nn.Linear) and name.endswith("_proj")
    }
    pairs = make_pairs(model, shapes)
    generator = torch.Generator().manual_seed(seed)
    for pair in pairs.values():
        pair.first_values(generator)
    put_adapter(model, "default", pairs)
    use_adapters(model, "default")
    train_only(model, "default")
    return nn.ModuleDict({n.replace(".", "/"): pair for n, pair in pairs.items()})


def save_speaker(speaker: Speaker, folder: Path, with_model: bool) -> None:
    """Write a projector, and a language model that has learned, its adapter added.

    Args:
        speaker: Speaker.
        folder: that is there.
        with_model: whether the language model is written.
    """
    with written_aside(folder / PROJECTOR) as part:
        save_file(contiguous(speaker.projector), part, {"format": "pt"})
    if with_model:
        with written_aside(folder / MODEL) as part:
            save_file(merged(speaker.model), part, {"format": "pt"})


def contiguous(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's numbers, each in memory of its own."""
    return {name: t.detach().clone() for name, t in module.state_dict().items()}


def merged(model: Any) -> dict[str, torch.Tensor]:
    """A language model's numbers under the names without adapters, these added."""
    state = contiguous(model)
    found = {n: t for n, t in state.items() if ".adapters." not in n}
    for name, part in model.named_modules():
        if hasattr(part, "adapters"):
            weight = found.pop(f"{name}.base.weight")
            found[f"{name}.weight"] = (
                weight + part.adapters["default"].product().detach()
            )
    return found


def load_speaker(folder: str | PathLike, speaker: Speaker) -> None:
    """Read what `save_speaker` wrote into a speaker of the same sizes, without adapters.

    Raises:
        InputError: a file is missing, damaged, or of other sizes.
    """
    folder = Path(folder)
    files = {PROJECTOR: speaker.projector}
    if (folder / MODEL).exists():
        files[MODEL] = speaker.model
    for name, module in files.items():
        with system_errors(folder / name, "read"):
            state = load_file(folder / name)
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise InputError(
                f"{folder / name} does not fit ({first}): expected the numbers of a "
                f"{type(module).__name__} of these sizes; give the same settings."
            ) from None
