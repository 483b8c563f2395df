"""Let the language model of chapter 16 read pictures: make pictures, make text, make alignment

EfficientNet-Lite0 looks at every picture of pictures/ once. Then a projector learns from captions
with everything else frozen, by seed; then questions, with the projector alone, with low-rank
adapters, and with all of the language model. Every training can be stopped and goes on when this
is called again. What is measured goes to notebooks/measured/alignment/NAME.json.
"""

import argparse
import random
from dataclasses import asdict, replace
from pathlib import Path

from mllama_lite.alignment.captions import PLACE, read_captions
from mllama_lite.alignment.examples import questions
from mllama_lite.alignment.features import encode, load_encoder
from mllama_lite.alignment.measuring import answered, measure, retrieval
from mllama_lite.alignment.speakers import Speaker, load_speaker, new_projector
from mllama_lite.alignment.training import AlignPlan, align
from mllama_lite.cli.train import keep_freed_memory
from mllama_lite.files import make_folder, write_json
from mllama_lite.pretraining.writing import load_text_model
from mllama_lite.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
PICTURES, TEXT = ROOT / "pictures", ROOT / "trained" / "text"
TRAINED = ROOT / "trained" / "alignment"
MEASURED = ROOT / "notebooks" / "measured" / "alignment"

CAPTIONS = AlignPlan()
ASKING = AlignPlan(rate=5e-4)
# name: (projector, plan, the run whose end it begins at, whether questions are learned)
RUNS = {
    "pooled-0": ("pooled", CAPTIONS, None, False),
    "asked-lora-0": ("pooled", replace(ASKING, learns="lora"), "pooled-0", True),
    "asked-all-0": ("pooled", replace(ASKING, learns="all"), "pooled-0", True),
    "patches-0": ("patches", CAPTIONS, None, False),
    "pooled-1": ("pooled", replace(CAPTIONS, seed=1), None, False),
    "unfrozen-0": ("pooled", replace(CAPTIONS, learns="all"), None, False),
    "asked-projector-0": ("pooled", ASKING, "pooled-0", True),
    "asked-all-1": ("pooled", replace(ASKING, learns="all", seed=1), "pooled-1", True),
}
SOME, MANY = 12, 64  # captions that are shown, and that are told apart


def by_split(records):
    """dict from a split to its records; the stamps by whether their thing is known."""
    known = {r.about["concept"] for r in records if r.about["split"] == "train"}
    found = {}
    for record in records:
        split = record.about["split"]
        if split == "outside":
            split += " known" if record.about["concept"] in known else " new"
        found.setdefault(split, []).append(record)
    return found


def distinct(records, count, seed=0):
    """Records of as many different captions, picked at random."""
    first = {record.caption: record for record in records}
    return random.Random(seed).sample(list(first.values()), min(count, len(first)))


def measured(speaker, splits, concepts, asks):
    """What is told of one training."""
    found = {"loss": {}, "retrieval": {}, "captions": {}}
    for name, records in splits.items():
        some = distinct(records, 300) if name == "train" else records
        found["loss"][name] = measure(speaker, some)
        found["retrieval"][name] = retrieval(speaker, distinct(records, MANY))
        found["captions"][name] = [
            {
                "picture": str(record.images[0].relative_to(PICTURES)),
                "truth": record.caption,
                "written": speaker.write(record.images, PLACE),
            }
            for record in random.Random(1).sample(records, min(SOME, len(records)))
        ]
    if asks:
        found["answered"] = {}
        for name, records in splits.items():
            asked = questions(distinct(records, 100, 2), concepts, seed=1)
            kept = [q for q in asked if q.about["kind"] != "describe"]
            found["answered"][name] = answered(speaker, kept)
    return found


def told(trainer):
    if trainer.step % 250 == 0:
        losses = trainer.history[-1].get("held_out", {})
        rest = {n: {k: round(v, 2) for k, v in of.items()} for n, of in losses.items()}
        print(trainer.step, f"{trainer.history[-1]['loss']:.3f}", rest, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", help=f"of {', '.join(RUNS)}; all if none")
    parser.add_argument("--text", type=Path, default=TEXT, help="what make text wrote")
    parser.add_argument("--model", default="dense-0", help="of its models")
    options = parser.parse_args()
    keep_freed_memory()
    tokenizer = Tokenizer.from_file(options.text / "tokenizer.model")
    records = read_captions(PICTURES / "captions.jsonl")
    encoder = load_encoder(PICTURES / "encoder" / "efficientnet-lite0.pth")
    features = encode([r.images[0] for r in records], encoder, PICTURES / "features")
    splits = by_split(records)
    train = splits["train"]
    concepts = sorted({r.about["concept"] for r in train})
    held_out = {name: splits[name] for name in ("seen", "unseen")}
    make_folder(MEASURED)
    for name in options.runs or RUNS:
        kind, plan, start, asks = RUNS[name]
        model = load_text_model(options.text / options.model)
        size = model.config.hidden_size
        projector = new_projector(kind, features.size, size, plan.seed)
        speaker = Speaker(model, projector, features, tokenizer)
        if start:
            load_speaker(TRAINED / start, speaker)
        learned = questions(train, concepts, plan.seed) if asks else train
        print(name, f"{len(learned)} records", flush=True)
        trainer = align(TRAINED / name, speaker, learned, plan, held_out, told)
        speaker.model.eval()
        seconds = sum(note["seconds"] for note in trainer.history)
        document = {
            "model": options.model,
            "projector": kind,
            "plan": asdict(plan),
            "start": start,
            "records": {split: len(of) for split, of in splits.items()},
            "seconds": round(seconds, 1),
            "history": trainer.history,
            **measured(speaker, splits, concepts, asks),
        }
        write_json(document, MEASURED / f"{name}.json")


if __name__ == "__main__":
    main()
