"""Train the language models of chapter 16: make text

Learns the vocabulary, packs the corpus that `make corpus` fetched, and trains one model after
another into trained/text/, each of which can be stopped and goes on when this is called again.
Their histories go to notebooks/measured/text/. Several processes share the work: a training that
another one has begun is left to it.

With --measure the models that are there are measured: loss by position up to four times the length
of training, with queries lengthened and not; which expert takes tokens of which source; and what
they write. That goes to notebooks/measured/text/measured.json.

With --full nothing is trained to the end: three steps of a model of 12 layers, 768 wide, with
32,000 tokens and experts (benchmarks/text_full.json, as `mllama-lite pretrain --config` takes it),
on random tokens, and every byte is counted that is in use. That goes to
notebooks/measured/text/full.json.
"""

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F

from mllama_lite.adapters.cost import Ledger
from mllama_lite.errors import InputError
from mllama_lite.families.llama4 import Llama4
from mllama_lite.files import written_aside
from mllama_lite.generation import Sampling
from mllama_lite.pretraining.corpus import prepare, read_documents
from mllama_lite.pretraining.training import (
    TextPlan,
    TextTrainer,
    active_parameters,
    first_values,
    mixtures,
    pretrain,
    routed,
    small_text_config,
)
from mllama_lite.pretraining.writing import load_text_model, read_text_config, write

ROOT = Path(__file__).resolve().parent.parent
FOLDER, MEASURED = ROOT / "trained" / "text", ROOT / "notebooks" / "measured" / "text"

# name: (kind, plan)
RUNS = {
    f"{kind}-{seed}": (kind, TextPlan(seed=seed))
    for seed in (0, 1)
    for kind in ("dense", "experts", "interleaved")
} | {
    "bias": ("experts", TextPlan(steps=600, balance="bias", balance_weight=0.001)),
    "none": ("experts", TextPlan(steps=600, balance="none")),
    "loss": ("experts", TextPlan(steps=600)),
}


LONG, PART = 1024, 128  # tokens of a piece, and of a part of it


def pieces(corpus, length):
    """(source, int [1, length + 1]) of the held-out documents that are so long."""
    for document in corpus.documents["held_out"]:
        start = document["start"]
        for first in range(start, start + document["length"] - length, length):
            ids = corpus.tokens["held_out"][first : first + length + 1]
            yield document["source"], torch.from_numpy(ids.astype("int64"))[None]


@torch.no_grad()
def loss_by_position(model, corpus):
    """Mean loss of each part of 128 tokens of pieces of 1,024."""
    losses = [
        F.cross_entropy(model(ids[:, :-1])[0], ids[0, 1:], reduction="none")
        for _, ids in pieces(corpus, LONG)
    ]
    parts = torch.stack(losses).unflatten(1, (-1, PART)).mean((0, 2))
    return [round(loss, 4) for loss in parts.tolist()]


@torch.no_grad()
def experts_by_source(model, corpus, length=256):
    """dict from a mixture to a dict from source to each expert's share of its places."""
    counts = {name: {} for name in mixtures(model)}
    for source, ids in pieces(corpus, length):
        with routed(model) as seen:
            model(ids[:, :-1])
        for name, (logits, chosen) in seen.items():
            found = chosen.flatten().bincount(minlength=logits.shape[-1])
            counts[name][source] = counts[name].get(source, 0) + found
    return {
        name: {
            source: [round(share, 4) for share in (found / found.sum()).tolist()]
            for source, found in sources.items()
        }
        for name, sources in counts.items()
    }


def measured(folder, tokenizer, corpus):
    """What is measured of one trained model."""
    model = load_text_model(folder)
    found = {"loss by position": loss_by_position(model, corpus)}
    if model.config.no_rope_layer_interval:
        config = replace(model.config, attn_temperature_tuning=True)
        longer = Llama4(config)
        longer.load_state_dict(model.state_dict())
        found["with longer queries"] = loss_by_position(longer.eval(), corpus)
    if mixtures(model):
        found["experts by source"] = experts_by_source(model, corpus)
    end = tokenizer.special["<|end_of_text|>"]
    found["samples"] = [
        tokenizer.decode(
            list(write(model, [end], 80, (end,), Sampling(0.8, top_p=0.95, seed=seed)))
        )
        for seed in range(3)
    ]
    return found


class RandomCorpus:
    """As much of a Corpus as a step needs, of random tokens."""

    checksum = ""

    def __init__(self, vocab_size):
        self.vocab_size = vocab_size

    def num_windows(self, length):
        return 10**6

    def windows(self, numbers, length):
        generator = torch.Generator().manual_seed(int(numbers[0]))
        shape = (len(numbers), length + 1)
        return torch.randint(self.vocab_size, shape, generator=generator)


def full_size(rows=2, length=512, device="cpu"):
    """Parameters, and the bytes of a step of the model of 12 layers, by what they are for."""
    config = read_text_config(ROOT / "benchmarks" / "text_full.json")
    model = Llama4(config).to(device)
    first_values(model, 0)
    plan = TextPlan(steps=3, batch=rows, length=length)
    trainer = TextTrainer(plan, model, RandomCorpus(config.vocab_size))
    peaks, losses = [], []
    for _ in range(plan.steps):
        with Ledger(torch.device(device).type) as ledger:
            ledger.add(model.parameters())
            ledger.add(
                tensor
                for state in trainer.optimiser.state.values()
                for tensor in state.values()
                if isinstance(tensor, torch.Tensor)
            )
            losses.append(round(trainer.train_step().item(), 3))
        peaks.append(ledger.peak)
    count = sum(p.numel() for p in model.parameters())
    known = 4 * 4 * count  # numbers, gradients, and AdamW's two averages, in fp32
    return {
        "parameters": count,
        "active": active_parameters(model),
        "rows": rows,
        "length": length,
        "losses": losses,
        "numbers, gradients, averages": known,
        "peak": max(peaks),
        "activations": max(peaks) - known,
    }


def told(trainer):
    if trainer.step % 50 == 0:
        print(trainer.step, f"{trainer.history[-1]['loss']:.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RUNS)}; default all")
    parser.add_argument("--measure", action="store_true", help="instead of training")
    parser.add_argument("--full", action="store_true", help="memory of a larger model")
    args = parser.parse_args()
    if args.full:
        found = full_size()
        MEASURED.mkdir(parents=True, exist_ok=True)
        with written_aside(MEASURED / "full.json") as part:
            part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(found)
        return
    tokenizer, corpus = prepare(lambda: read_documents(ROOT / "corpus"), FOLDER)
    if args.measure:
        there = [n for n in RUNS if (FOLDER / n / "model.safetensors").is_file()]
        found = {name: measured(FOLDER / name, tokenizer, corpus) for name in there}
        MEASURED.mkdir(parents=True, exist_ok=True)
        with written_aside(MEASURED / "measured.json") as part:
            part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    vocab_size = max(tokenizer.special.values()) + 1
    for name in args.names or RUNS:
        kind, plan = RUNS[name]
        if (FOLDER / name / "history.json").is_file():
            continue
        print(name, flush=True)
        try:
            config = small_text_config(vocab_size, kind)
            pretrain(FOLDER / name, corpus, config, plan, told)
        except InputError as error:
            print(error)
            continue
        MEASURED.mkdir(parents=True, exist_ok=True)
        shutil.copy(FOLDER / name / "history.json", MEASURED / f"{name}.json")


if __name__ == "__main__":
    main()
