# Generated from notebooks/19_guard.ipynb: edit there, or here and run `make update`.
"""A guard of half a million parameters, trained from nothing on what probes say.

Built in chapter 19, notebooks/19_guard.ipynb. It has Llama Guard's format, one category,
and a vocabulary of its own, so that it can be trained in minutes and measured as a large
one would be.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from os import PathLike
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.adapters.data import indices_of_step
from mllama_lite.checkpoints.loading import save_model
from mllama_lite.decoder import TextConfig
from mllama_lite.errors import InputError, shown
from mllama_lite.files import written_aside
from mllama_lite.guard import guard_message
from mllama_lite.guard_probes import Probe
from mllama_lite.model import Mllama, MllamaConfig
from mllama_lite.pretraining.vocabulary import count_words, learn_merges
from mllama_lite.resumable import NOTE_EVERY, Resumable, decayed, quick_arithmetic
from mllama_lite.tokenizer import Tokenizer, write_tokenizer_model
from mllama_lite.training_folder import (
    STATE,
    as_stored,
    check_out,
    checksum,
    only_training,
)


ONE_CATEGORY = {"S1": "Harmful Requests"}
SAVE_EVERY = 100  # steps


@dataclass(frozen=True)
class GuardPlan:
    """What decides how a guard's training goes; whoever changes it begins anew.

    Attributes:
        seed: of first values and order.
        steps, batch: of the optimiser, and probes in each.
        rate: the highest learning rate, after a tenth of the steps; then down in a line.
        merges: of the vocabulary.
        hidden_size, layers: of the model.
        dropped: share of a probe's tokens that are replaced by others in training, so
            that it is not learned by heart.

    Raises:
        InputError: a setting is out of its range.
    """

    seed: int = 0
    steps: int = 250
    batch: int = 32
    rate: float = 2e-3
    merges: int = 1500
    hidden_size: int = 96
    layers: int = 3
    dropped: float = 0.1

    def __post_init__(self) -> None:
        for name, least in (
            ("seed", 0),
            ("steps", 1),
            ("batch", 1),
            ("merges", 0),
            ("hidden_size", 8),
            ("layers", 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value < 2**31:
                raise InputError(
                    f"{name} is {shown(value)}: expected a whole number, {least} or "
                    "more; change it."
                )
        for name, most in (("rate", 1.0), ("dropped", 0.9)):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 <= value <= most:
                raise InputError(
                    f"{name} is {shown(value)}: expected a number from 0 to {most}; "
                    "change it."
                )
        if self.hidden_size % 8:
            raise InputError(
                f"hidden_size is {self.hidden_size}: expected a multiple of 8, for four "
                "heads of an even width; change it."
            )


def guard_config(plan: GuardPlan, vocab_size: int) -> MllamaConfig:
    """A text-only Llama of the plan's sizes; its head is its embedding."""
    size = plan.hidden_size
    text = TextConfig(
        vocab_size=vocab_size,
        hidden_size=size,
        intermediate_size=8 * size // 3 // 8 * 8,
        num_hidden_layers=plan.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=size // 4,
        rope_theta=10000.0,
        rope_scaling=None,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        cross_attention_layers=(),
        num_extra_embeddings=0,
    )
    first = vocab_size - 256  # of the special tokens
    ends = (first + 1, first + 8, first + 9)
    return MllamaConfig(text, None, vocab_size, ends)


def guard_tokenizer(probes: Sequence[Probe], merges: int) -> dict[bytes, int]:
    """Ranks of a vocabulary for probes and for what stands around them."""
    texts = [text for p in probes for text in (p.text, p.answer or "")]
    around = guard_message([{"role": "user", "content": ""}], ONE_CATEGORY)["content"]
    answers = ["safe", "unsafe\nS1", "user", "assistant"]
    counts = count_words(texts + (answers + [around]) * 100)
    return learn_merges(counts, merges)


@dataclass(frozen=True)
class Example:
    """Ids of a prompt and its answer; where the judged text begins and ends."""

    prompt: list[int]
    answer: list[int]
    begin: int
    end: int


def example(probe: Probe, tokenizer: Tokenizer) -> Example:
    """A probe as the guard meets it in training, with the answer that is right."""
    message = guard_message(probe.messages(), ONE_CATEGORY)
    prompt, _ = tokenizer.encode_chat([message])
    answer = tokenizer.encode("unsafe\nS1" if probe.unsafe else "safe")
    judged = probe.text if probe.answer is None else probe.answer
    pieces = [tokenizer.token_bytes(id) for id in prompt]
    ends = list(accumulate(map(len, pieces)))
    first = b"".join(pieces).rindex(judged.encode() + b"\n\n<END CONVERSATION>")
    last = first + len(judged.encode())
    # A word's token begins with the space before it.
    begin = sum(end < first for end in ends)
    end = max(begin, sum(end <= last for end in ends))
    end_of_turn = tokenizer.special["<|eot_id|>"]
    return Example(prompt, [*answer, end_of_turn], begin, end)


class GuardTrainer(Resumable):
    """A guard in training: it learns nothing but its answers.

    Args:
        plan: GuardPlan.
        model: Mllama with its first values.
        examples: list of Example.
        tokenizer: Tokenizer.
    """

    def __init__(
        self,
        plan: GuardPlan,
        model: Mllama,
        examples: Sequence[Example],
        tokenizer: Tokenizer,
    ) -> None:
        self.plan, self.model, self.examples = plan, model, examples
        self.pad, self.others = tokenizer.pad_id, tokenizer.special["<|begin_of_text|>"]
        rows = [[*e.prompt, -1, *e.answer] for e in examples]
        settings = as_stored(plan) | {"probes": checksum(rows)}
        optimiser = torch.optim.AdamW(
            decayed(dict(model.named_parameters())),
            betas=(0.9, 0.98),
            weight_decay=0.1,
        )
        super().__init__(settings, plan.steps, {"model": model}, optimiser, 2)

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens [B, T], labels [B, T]) of this step; -100 where nothing is learned."""
        plan = self.plan
        chosen = indices_of_step(self.step, plan.batch, len(self.examples), plan.seed)
        rows = [self.examples[i] for i in chosen]
        length = max(len(e.prompt) + len(e.answer) for e in rows) - 1
        tokens = torch.full((len(rows), length), self.pad)
        labels = torch.full((len(rows), length), -100)
        generator = torch.Generator().manual_seed(plan.seed * 2**31 + self.step)
        for i, e in enumerate(rows):
            ids = torch.tensor(e.prompt + e.answer)
            gone = torch.rand(e.end - e.begin, generator=generator) < plan.dropped
            others = torch.randint(self.others, gone.shape, generator=generator)
            ids[e.begin : e.end] = torch.where(gone, others, ids[e.begin : e.end])
            tokens[i, : len(ids) - 1] = ids[:-1]
            labels[i, len(e.prompt) - 1 : len(ids) - 1] = ids[len(e.prompt) :]
        return tokens, labels

    def train_step(self) -> torch.Tensor:
        """Learn from the probes of one step. Returns the loss, fp32 scalar."""
        tokens, labels = (t.to(self.sums.device) for t in self.batch())
        with quick_arithmetic(self.sums.device):
            language, asked = self.model.language_model, labels >= 0
            hidden = language.model(tokens)[asked]  # [n, D]: the head for these alone
            loss = F.cross_entropy(language.lm_head(hidden).float(), labels[asked])
        done = self.step / self.plan.steps
        self.learn(loss, self.plan.rate * min(10 * done + 0.01, 1.01 - done))
        self.sums += torch.stack([loss.new_ones(()), loss.detach()])
        if self.step % NOTE_EVERY == 0:
            count, total = self.sums.tolist()
            self.history.append({"step": self.step, "loss": total / count})
            self.sums.zero_()
        return loss.detach()


@torch.no_grad()
def first_values(model: nn.Module, seed: int) -> None:
    """Random first values, small where the stream is added to."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            nn.init.ones_(weight)
            continue
        std = 0.02 if "embed" in name else 0.4 * weight.shape[-1] ** -0.5
        weight.copy_(torch.randn(weight.shape, generator=generator) * std)


def train_guard(
    folder: str | PathLike,
    probes: Sequence[Probe],
    plan: GuardPlan = GuardPlan(),
    progress: Callable[[GuardTrainer], object] | None = None,
) -> Mllama:
    """Train a small guard, or go on where an earlier call was stopped.

    Args:
        folder: made if it is not there; at the end it holds a checkpoint of the hub's
            layout in bf16, its tokenizer, and categories.json.
        probes: to learn from, unsafe ones and others.
        plan: GuardPlan.
        progress: called with the GuardTrainer after every step, or None.

    Raises:
        InputError: see `check_out` and `only_training` for the folder; it holds another
            training; probes of one kind only.
    """
    if len({probe.unsafe for probe in probes}) < 2:
        raise InputError(
            f"There are {len(probes)} probes to learn from, not of both kinds: expected "
            "some unsafe and some safe; give the others too."
        )
    folder = check_out(folder)
    with only_training(folder):
        ranks = guard_tokenizer(probes, plan.merges)
        tokenizer = Tokenizer(ranks)
        model = Mllama(guard_config(plan, tokenizer.vocab_size))
        first_values(model, plan.seed)
        examples = [example(probe, tokenizer) for probe in probes]
        trainer = GuardTrainer(plan, model, examples, tokenizer)
        state = folder / STATE
        if state.is_file():
            trainer.load(state)
        else:
            trainer.save(state)  # from now on the folder is this training's
        while trainer.step < plan.steps:
            trainer.train_step()
            if trainer.step % SAVE_EVERY == 0 or trainer.step == plan.steps:
                trainer.save(state)
            if progress:
                progress(trainer)
        save_model(model.to(torch.bfloat16), folder)
        write_tokenizer_model(ranks, folder / "tokenizer.model")
        documents: dict[str, Any] = {
            "categories.json": ONE_CATEGORY,
            "history.json": trainer.history,
        }
        for name, document in documents.items():
            with written_aside(folder / name) as part:
                part.write_text(json.dumps(document) + "\n", encoding="utf-8")
    return model.eval()
