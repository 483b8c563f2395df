"""Measure the filters of chapter 19 on the probes that make probes fetched: make guard

Trains the small guard into trained/guard/ (minutes; stopped, it goes on when called again), and
gives every probe to three filters: a list of words, the classifier of the package
alt-profanity-check, which is fetched, and the small guard. What each said goes to
notebooks/measured/guard.json: rates with intervals, and the guard's scores, without the texts.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "notebooks"))

from guard_words import hits  # noqa: E402
from mllama_lite.files import written_aside  # noqa: E402
from mllama_lite.guard import Guard  # noqa: E402
from mllama_lite.guard_probes import (  # noqa: E402
    Probe,
    by_source,
    file_checksum,
    read_probes,
    scores,
    separation,
)
from mllama_lite.guard_training import ONE_CATEGORY, GuardPlan, train_guard  # noqa: E402
from mllama_lite.vlm import load  # noqa: E402

FOLDER, PROBES = ROOT / "trained" / "guard", ROOT / "probes"
SETS = {
    "train": PROBES / "train.jsonl",
    "test": PROBES / "test.jsonl",
    "pairs": ROOT / "notebooks" / "guard" / "pairs.jsonl",
    "wrapped": PROBES / "wrapped.jsonl",
    "toxicity": PROBES / "toxicity.jsonl",
}
PACKAGE = "alt-profanity-check==1.9.1"  # MIT


def profanity(texts: list[str]) -> list[float]:
    """The probability of profanity that the classifier of the package gives."""
    import joblib

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
        subprocess.run([*command, "-d", folder, PACKAGE], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        place = Path(folder) / "profanity_check" / "data"
        vectorizer = joblib.load(place / "vectorizer.joblib")
        model = joblib.load(place / "model.joblib")
    found = model.predict_proba(vectorizer.transform(texts))[:, 1]
    return [float(score) for score in found]


def measured(probes: list[Probe], found: list[float]) -> dict:
    """Rates by source at a half, and how well the two kinds come apart."""
    rows = by_source(probes, found)
    return {
        "separation": round(separation(probes, found), 4),
        "sources": {name: vars(row) for name, row in rows.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.parse_args()

    def told(trainer):
        if trainer.step % 50 == 0:
            print(trainer.step, f"{trainer.history[-1]['loss']:.3f}", flush=True)

    learned = read_probes(SETS["train"])
    if not (FOLDER / "model.safetensors").is_file():
        train_guard(FOLDER, learned, GuardPlan(), told)
    guard = Guard(load(FOLDER), ONE_CATEGORY)
    document: dict = {"filters": {}, "probes_sha256": {}, "scores": {}}
    every = {name: read_probes(path) for name, path in SETS.items()}
    every["train"] = every["train"][::4]
    texts = [probe.text for probes in every.values() for probe in probes]
    said = profanity(texts)
    for name, probes in every.items():
        mine, said = said[: len(probes)], said[len(probes) :]
        given = {
            "words": [float(hits(probe.text) > 0) for probe in probes],
            "profanity": mine,
            "guard": scores(guard, probes),
        }
        for filter, found in given.items():
            document["filters"].setdefault(filter, {})[name] = measured(probes, found)
        document["probes_sha256"][name] = file_checksum(SETS[name])
        document["scores"][name] = [
            [int(probe.unsafe), round(score, 4)]
            for probe, score in zip(probes, given["guard"])
        ]
        print(
            name,
            {f: document["filters"][f][name]["separation"] for f in given},
            flush=True,
        )
    parts = (
        json.dumps(name) + ": " + json.dumps(part) for name, part in document.items()
    )
    with written_aside(ROOT / "notebooks" / "measured" / "guard.json") as part:
        part.write_text("{" + ",\n ".join(parts) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
