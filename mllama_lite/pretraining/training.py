# Generated from notebooks/16_text.ipynb: edit there, or here and run `make update`.
"""A language model from nothing: first values, steps, and what is measured on the way.

Built in chapter 16, notebooks/16_text.ipynb. That it can stop anywhere is chapter 11's
`Resumable`.
"""

import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.adapters.data import indices_of_step
from mllama_lite.devices import find_device
from mllama_lite.errors import InputError, shown
from mllama_lite.families.experts import (
    MixtureOfExperts,
    balance_by_bias,
    balance_loss,
    expert_load,
)
from mllama_lite.families.llama4 import Llama4, Llama4Config
from mllama_lite.files import written_aside
from mllama_lite.pretraining.corpus import Corpus
from mllama_lite.pretraining.writing import save_text_model
from mllama_lite.resumable import NOTE_EVERY, Resumable, decayed, quick_arithmetic
from mllama_lite.training_folder import STATE, as_stored, check_out, only_training


SAVE_EVERY = 100  # steps
MEASURE_EVERY = 200  # steps
BALANCES = ("loss", "bias", "none")


@dataclass(frozen=True)
class TextPlan:
    """What decides how a pretraining goes; whoever changes it begins anew.

    Attributes:
        seed: of first values and order.
        steps: of the optimiser.
        batch: pieces of text in a step.
        length: tokens of a piece.
        rate: the highest learning rate: reached after `warmup` steps, held until `decay`
            of the steps are left, then down in a line.
        warmup, decay: in steps, and as a share of the steps.
        balance: how experts are kept alike in use: "loss", "bias" or "none".
        balance_weight: of the loss, or the step of the bias.

    Raises:
        InputError: a setting is out of its range.
    """

    seed: int = 0
    steps: int = 2000
    batch: int = 8
    length: int = 256
    rate: float = 2e-3
    warmup: int = 100
    decay: float = 0.4
    balance: str = "loss"
    balance_weight: float = 0.01

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("steps", 1), ("batch", 1), ("length", 1)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 2**63:
                raise InputError(
                    f"{name} is {shown(value)}: expected a whole number, {least} or "
                    "more; change it."
                )
        if self.balance not in BALANCES:
            raise InputError(
                f"balance is {shown(self.balance)}: expected one of "
                f"{', '.join(BALANCES)}; change it."
            )
        for name, fits, expected in (
            ("rate", lambda x: 0 < x <= 1, "a number above 0, at most 1"),
            ("warmup", lambda x: 0 <= x < 2**63, "a number, 0 or more"),
            ("decay", lambda x: 0 <= x <= 1, "a number from 0 to 1"),
            ("balance_weight", lambda x: 0 <= x <= 10, "a number from 0 to 10"),
        ):
            value = getattr(self, name)
            if type(value) not in (int, float) or not fits(value):
                raise InputError(
                    f"{name} is {shown(value)}: expected {expected}; change it."
                )

    def learning_rate(self, step: int) -> float:
        """At one of the steps: up, level, and down to a fiftieth."""
        left = (1 - step / self.steps) / self.decay if self.decay else 1.0
        up = (step + 1) / self.warmup if self.warmup else 1.0
        return self.rate * min(1.0, up, max(0.02, left))


def small_text_config(vocab_size: int, kind: str) -> Llama4Config:
    """Sizes of about 3 million active parameters, alike in all but what is compared.

    Args:
        vocab_size: W.
        kind: "dense"; "experts": 2 of 8 in every second layer, each half as wide as the
            MLP that they stand for; "interleaved": the same, with three of four layers
            that see chunks of 64 tokens and a fourth without positions.

    Returns:
        Llama4Config.
    """
    if kind not in ("dense", "experts", "interleaved"):
        raise InputError(
            f"The kind is {shown(kind)}: expected dense, experts or interleaved; "
            "choose one."
        )
    chunks = kind == "interleaved"
    return Llama4Config(
        vocab_size=vocab_size,
        hidden_size=192,
        intermediate_size=192,
        intermediate_size_mlp=384,
        num_hidden_layers=8,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        rope_theta=10000.0,
        rope_scaling=None,
        no_rope_layer_interval=4 if chunks else 0,
        attention_chunk_size=64 if chunks else 0,
        use_qk_norm=True,
        attn_temperature_tuning=False,
        floor_scale=256.0,
        num_local_experts=0 if kind == "dense" else 8,
        num_experts_per_tok=2,
        interleave_moe_layer_step=2,
        shared_expert=False,
        tie_word_embeddings=True,
    )


def active_parameters(model: Llama4) -> int:
    """How many parameters a token meets: of a layer's experts, those that take it."""
    total = sum(p.numel() for p in model.parameters())
    for moe in mixtures(model).values():
        size = sum(p.numel() for p in moe.experts.parameters())
        total -= size - size * moe.num_chosen // len(moe.choice_bias)
    return total


def mixtures(model: Llama4) -> dict[str, MixtureOfExperts]:
    """The mixtures of experts of a model, by name."""
    found = model.named_modules()
    return {name: m for name, m in found if isinstance(m, MixtureOfExperts)}


@torch.no_grad()
def first_values(model: Llama4, seed: int) -> None:
    """Random first values: what leaves a layer is small, so that the stream begins calm."""
    generator = torch.Generator().manual_seed(seed)
    deep = (2 * model.config.num_hidden_layers) ** -0.5
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            nn.init.ones_(weight)  # of a norm
            continue
        inputs = weight.shape[-2] if weight.ndim == 3 else weight.shape[-1]
        std = 0.02 if "embed" in name else inputs**-0.5
        if name.endswith(("o_proj.weight", "down_proj.weight", "down_proj")):
            std *= deep
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)


@contextmanager
def routed(model: Llama4) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """Within this block: by layer, the router's logits and the choice of the last pass."""
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = []
    for name, moe in mixtures(model).items():

        def keep(
            _: nn.Module,
            __: Any,
            logits: torch.Tensor,
            name: str = name,
            moe: MixtureOfExperts = moe,
        ) -> None:
            seen[name] = logits, moe.choose(logits)[0]

        handles.append(moe.router.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def unevenness(
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """The mean of the layers' `balance_loss`; each is balanced by itself.

    Added up first, two layers could be uneven in opposite ways and look even.
    """
    return torch.stack([balance_loss(*one) for one in seen.values()]).mean()


class TextTrainer(Resumable):
    """A language model in training.

    Args:
        plan: TextPlan.
        model: Llama4 with its first values.
        corpus: Corpus.
    """

    def __init__(self, plan: TextPlan, model: Llama4, corpus: Corpus) -> None:
        self.plan, self.model, self.corpus = plan, model, corpus
        self.mixtures = mixtures(model)
        settings = as_stored(plan) | {
            "model": as_stored(model.config),
            "corpus": corpus.checksum,
        }
        optimiser = torch.optim.AdamW(
            decayed(dict(model.named_parameters())),
            betas=(0.9, 0.95),
            weight_decay=0.1,
            fused=True,
        )
        counted = sum(len(moe.choice_bias) for moe in self.mixtures.values())
        super().__init__(settings, plan.steps, {"model": model}, optimiser, 3 + counted)

    def train_step(self) -> torch.Tensor:
        """Learn from the pieces of one step. Returns the loss, fp32 scalar."""
        begin, plan, device = time.process_time(), self.plan, self.sums.device
        pieces = self.corpus.num_windows(plan.length)
        numbers = indices_of_step(self.step, plan.batch, pieces, plan.seed)
        tokens = self.corpus.windows(numbers, plan.length).to(device)
        with quick_arithmetic(device), routed(self.model) as seen:
            logits = self.model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            whole = loss
            if plan.balance == "loss" and seen:
                whole = loss + plan.balance_weight * unevenness(seen)
        self.learn(whole, plan.learning_rate(self.step))
        if plan.balance == "bias":
            for name, one in seen.items():
                balance_by_bias(self.mixtures[name], *one, plan.balance_weight)
        loads = [expert_load(*seen[name]) for name in self.mixtures]
        spent = loss.new_tensor([1.0, time.process_time() - begin])
        self.sums += torch.cat([spent, loss.detach()[None], *loads])
        if self.step % NOTE_EVERY == 0:
            self._note()
        return loss.detach()

    def _note(self) -> None:
        count, seconds, loss, *loads = self.sums.tolist()
        note: dict[str, Any] = {
            "step": self.step,
            "tokens": self.step * self.plan.batch * self.plan.length,
            "loss": loss / count,
            "seconds": seconds,  # of the processor, all threads, in these steps
        }
        if loads:
            sizes = iter(load / count for load in loads)
            note["load"] = {
                name: [next(sizes) for _ in moe.choice_bias]
                for name, moe in self.mixtures.items()
            }
        self.history.append(note)
        self.sums.zero_()

    def measure(self, most: int | None = None) -> None:
        """Note in the history what the held-out documents cost, see `held_out_loss`."""
        found = held_out_loss(self.model, self.corpus, self.plan.length, most)
        self.history[-1]["held_out"] = found


@torch.no_grad()
def held_out_loss(
    model: Llama4, corpus: Corpus, length: int, most: int | None = None
) -> dict[str, dict[str, float]]:
    """Loss on documents that were held out, whole, each from its own beginning.

    Args:
        model: Llama4.
        corpus: Corpus.
        length: T: a longer document is cut into pieces of so many tokens, each without
            what was before it.
        most: tokens of each document, from its beginning; None for all.

    Returns:
        dict from source, and "all", to `loss` in nats a token, `bits_per_byte`, and
        `tokens`. The first token of a piece is not predicted, and not counted.
    """
    device = model.device
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0, 0.0])
    everything = corpus.tokens["held_out"]
    for document in corpus.documents["held_out"]:
        start, size = document["start"], document["length"]
        size = size if most is None else min(size, most)
        ids = torch.from_numpy(everything[start : start + size].astype("int64"))
        pieces = [p for p in ids.to(device).split(length) if len(p) > 1]
        whole = [p for p in pieces if len(p) == length]
        rest = [p for p in pieces if len(p) < length]
        batches = [torch.stack(whole[i : i + 8]) for i in range(0, len(whole), 8)]
        for batch in batches + [p[None] for p in rest]:
            with quick_arithmetic(device):
                logits = model(batch[:, :-1]).flatten(0, 1)
            targets = batch[:, 1:].flatten()
            loss = F.cross_entropy(logits, targets, reduction="sum").item()
            per_token = document["bytes"] / document["length"]
            for name in (document["source"], "all"):
                entry = sums[name]
                entry[0] += loss
                entry[1] += len(targets)
                entry[2] += len(targets) * per_token
    order = sorted(name for name in sums if name != "all") + ["all"]
    return {
        name: {
            "loss": sums[name][0] / sums[name][1],
            "bits_per_byte": sums[name][0] / math.log(2) / sums[name][2],
            "tokens": sums[name][1],
        }
        for name in order
    }


def pretrain(
    folder: str | PathLike,
    corpus: Corpus,
    config: Llama4Config,
    plan: TextPlan = TextPlan(),
    progress: Callable[[TextTrainer], object] | None = None,
    device: str | torch.device = "cpu",
    measured: int | None = 512,
) -> Llama4:
    """Train a language model from nothing, or go on where an earlier call was stopped.

    Every 100 steps the state is written to `training.pt` in the folder. The same plan
    gives the same model on the same processor with as many threads, however often it
    was stopped.

    Args:
        folder: path; made if it is not there. At the end it holds `model.safetensors`,
            `config.json` and `history.json`.
        corpus: Corpus.
        config: Llama4Config.
        plan: TextPlan.
        progress: called with the TextTrainer after every step, or None.
        device: torch device or its name.
        measured: tokens of each held-out document that are measured every 200 steps; if
            the last step is one of them, all are.

    Returns:
        Llama4, parameters in fp32.

    Raises:
        InputError: see `check_out` and `only_training` for the folder; it holds another
            training, or a damaged one; the corpus has tokens that the model has not, or
            fewer than a piece.
    """
    folder = check_out(folder)
    highest = max(int(tokens.max()) for tokens in corpus.tokens.values())
    if highest >= config.vocab_size:
        raise InputError(
            f"The corpus has the token {highest}: expected less than the model's "
            f"vocab_size {config.vocab_size}; pack it with this model's tokenizer."
        )
    if corpus.num_windows(plan.length) < 1:
        raise InputError(
            f"The corpus has {len(corpus.tokens['train'])} tokens to learn from: "
            f"expected more than the {plan.length} of a piece; give more text."
        )
    with only_training(folder):
        model = Llama4(config)
        first_values(model, plan.seed)
        trainer = TextTrainer(plan, model.to(find_device(device)), corpus)
        state = folder / STATE
        if state.is_file():
            trainer.load(state)
        else:
            trainer.save(state)  # from now on the folder is this training's
        while trainer.step < plan.steps:
            trainer.train_step()
            last = trainer.step == plan.steps
            if trainer.step % MEASURE_EVERY == 0:
                trainer.measure(None if last else measured)
            if trainer.step % SAVE_EVERY == 0 or last:
                trainer.save(state)
            if progress:
                progress(trainer)
        save_text_model(model, folder)
        with written_aside(folder / "history.json") as part:
            part.write_text(json.dumps(trainer.history) + "\n", encoding="utf-8")
    return model.eval()
