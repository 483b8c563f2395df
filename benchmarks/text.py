"""Train the language models of chapter 16: make text

Learns the vocabulary, packs the corpus that `make corpus` fetched, and trains one model after
another into trained/text/, each of which can be stopped and goes on when this is called again.
Their histories go to notebooks/measured/text/. Several processes share the work: a training that
another one has begun is left to it.
"""

import argparse
import shutil
from pathlib import Path

from mllama_lite.errors import InputError
from mllama_lite.pretraining.corpus import prepare, read_documents
from mllama_lite.pretraining.training import TextPlan, pretrain, small_text_config

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


def told(trainer):
    if trainer.step % 50 == 0:
        print(trainer.step, f"{trainer.history[-1]['loss']:.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RUNS)}; default all")
    args = parser.parse_args()
    tokenizer, corpus = prepare(lambda: read_documents(ROOT / "corpus"), FOLDER)
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
