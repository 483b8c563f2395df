"""What can a small adapter learn? Naming emoji, by target group, by rank, and in full.

    python benchmarks/skills.py tune      choose the learning rates, first
    python benchmarks/skills.py train     then learn, each designer held out in turn
    python benchmarks/skills.py train --held-out noto --only full

The 38 food names of up to six letters are learned from 24 pictures of each drawing by
three designers, in 500 steps of 16 samples, and asked for on the fourth designer's
drawings: 38 questions, 152 with every designer held out in turn. Everything is done by
the package's own Trainer, so a line's targets and rank, given to `mllama-lite finetune`
with its learning rate, do the same. Full fine-tuning trains every parameter instead.

The learning rate is the one of RATES with the lowest loss on held-out drawings of OTHER
names, the 32 longer ones, in half as many steps: no drawing that is asked for below has
a part in it. All ranks, and the head alone, have the rate of rank 2. For full training
that loss turned out to choose a rate that names few drawings right; so it has three, and
the best on the drawings that are asked for counts, which no part or rank up to 4 was
given. Ranks 8 and 16 have half the rate beside that of rank 2, as it is too fast for
them; there the best counts, too. The mixed settings have questions of the old kinds in
the folder as well, answered as the model answered them before, in equally many steps of
equally many samples. Results go line by line into notebooks/measured/skills.json; what
has its line is skipped.
"""

import argparse
import fcntl
import json
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mllama_lite.adapters.data import read_samples
from mllama_lite.adapters.lora import add_adapter
from mllama_lite.adapters.peft_files import save_adapter
from mllama_lite.adapters.processes import Processes
from mllama_lite.adapters.recipe import Recipe
from mllama_lite.adapters.training import Trainer
from mllama_lite.small_model.evaluation import Item, answers, exact_match, held_out
from mllama_lite.small_model.questions import WORDINGS, ask
from mllama_lite.small_model.scenes import draw_scene, load_masks
from mllama_lite.vlm import load
from places import ROOT  # and with it emoji is found

# isort: split
import emoji

OUT = ROOT / "notebooks" / "measured" / "skills.json"
ADAPTER = ROOT / "notebooks" / "measured" / "emoji_adapter"
STEPS, BATCH, COUNT = 500, 16, 24


@dataclass(frozen=True)
class Setting:
    """What is trained.

    Attributes:
        name: of its lines.
        targets: see `find_targets`; none for every parameter of the model.
        rank: of the adapter where a target has none of its own; alpha is twice it.
        old_share: of the samples that ask what the model knew before.
    """

    name: str
    targets: tuple[str, ...] = ()
    rank: int = 1
    old_share: float = 0.0


# The model has never written most of the tokens of these names, so that every adapter has
# a large part on the head. With what is left to them, the groups have equally many
# parameters.
HEAD = "head:64"
VISION = ("vision.local", "vision.global", "projector")
SHOWN = "all, rank 2"
SETTINGS = (
    Setting("full"),
    Setting(SHOWN, ("all", HEAD), 2),
    Setting("self", ("self", HEAD), 17),
    Setting("cross", ("cross", HEAD), 9),
    Setting("vision", (*VISION, HEAD), 4),
    Setting("head", (HEAD,), 64),
    Setting("all, rank 1", ("all", HEAD), 1),
    Setting("all, rank 4", ("all", HEAD), 4),
    Setting("all, rank 8", ("all", HEAD), 8),
    Setting("all, rank 16", ("all", HEAD), 16),
    Setting("mixed, 1/4", ("all", HEAD), 2, 1 / 4),
    Setting("mixed, 1/2", ("all", HEAD), 2, 1 / 2),
)
ALIKE = ("all", "head", "mixed")
SAME_RATE = {s.name: SHOWN for s in SETTINGS if s.name.startswith(ALIKE)}
RATES = {
    True: (7e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2),
    False: (4e-3, 8e-3, 1.6e-2),
}  # full, adapters


def add_old(folder, share, seed=0):
    """Add questions of chapter 11's kinds to a data folder, a share of all its lines.

    Their answers are those that the shipped model gives, whether right or not: what it
    does is to be kept. Their pictures are of the scans that it was trained with.
    """
    metadata = Path(folder, "metadata.jsonl")
    new = len(metadata.read_text().splitlines())
    rng, masks, kinds = np.random.default_rng(seed), load_masks("train"), list(WORDINGS)
    items = []
    while len(items) < round(new * share / (1 - share)):
        scene = draw_scene(rng, masks)
        if question := ask(rng, scene, kinds[rng.integers(len(kinds))]):
            items.append(Item(question.kind, question, scene.image))
    told = answers(load(dtype="float32", device="cpu"), items)
    with open(metadata, "a") as file:
        for number, (item, answer) in enumerate(zip(items, told)):
            name = f"old-{number}.png"
            item.image.save(Path(folder, name))
            line = {"question": item.question.text, "answer": answer}
            file.write(json.dumps({"file_name": name} | line) + "\n")


def prepared(setting, folder, rate, steps):
    """A Trainer of the shipped model that has not begun."""
    recipe = Recipe(
        targets=setting.targets,
        rank=setting.rank,
        alpha=2 * setting.rank,
        steps=steps,
        batch=BATCH,
        lr=rate,
    )
    vlm = load(dtype="float32", device="cpu")
    samples, asked = read_samples(folder, vlm.tokenizer, vlm.config)
    if setting.targets:
        names = ("targets", "rank", "alpha", "seed")
        add_adapter(vlm.model, **{n: getattr(recipe, n) for n in names}, report=None)
    else:
        vlm.model.requires_grad_(True)
    return Trainer(vlm, samples, asked, recipe, Processes("cpu"))


def learn(setting, rate, designer, names, steps, old=0, out=None):
    """Train and measure.

    Args:
        setting: Setting.
        rate: the highest learning rate.
        designer: whose drawings are held out.
        names: that are learned.
        steps: of the optimiser.
        old: questions in each row of `held_out` that are asked before and after.
        out: where to save the adapter, or None.

    Returns:
        dict: what was set and what was measured.
    """
    others = [one for one in emoji.DESIGNERS if one != designer]
    with tempfile.TemporaryDirectory() as folder:
        emoji.write_data(Path(folder, "train"), others, COUNT, names)
        emoji.write_data(Path(folder, "validation"), [designer], 0, names)
        if setting.old_share:
            add_old(Path(folder, "train"), setting.old_share)
        trainer = prepared(setting, folder, rate, steps)
        trainer.measure()
        before = trainer.history[-1]["held_out_right"]
        items = held_out("validation", old) if old else []
        known = correct(trainer.vlm, items)
        while trainer.step < steps:
            trainer.train_step()
        trainer.measure()
    trainer.model.eval()
    last = trainer.history[-1]
    times = sorted(row["seconds"] for row in trainer.history[1:])
    if out:
        save_adapter(trainer.model, out)
    return {
        "setting": setting.name,
        "targets": setting.targets,
        "rank": setting.rank,
        "parameters": sum(p.numel() for p in trainer.parameters.values()),
        "held_out": designer,
        "rate": rate,
        "steps": steps,
        "asked": len(trainer.held_out),
        "before": before,
        "right": last["held_out_right"],
        "held_out_loss": last["held_out_loss"],
        "old_asked": len(items),
        "old_before": known,
        "old_right": correct(trainer.vlm, items),
        "seconds_per_step": times[len(times) // 2],
    }


@torch.inference_mode()
def correct(vlm, items):
    """How many questions of `measure.held_out` are answered to the letter."""
    if not items:
        return 0
    return exact_match(items, answers(vlm, items))["all"][0]


def lines(out, kind):
    """Those of one kind, "tune" or "train", that a file has."""
    return json.loads(out.read_text())[kind] if out.is_file() else []


def add_line(out, kind, line):
    """Add a line, also when two processes do it at once."""
    with open(Path(tempfile.gettempdir(), f"{out.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        both = {one: lines(out, one) for one in ("tune", "train")}
        both[kind].append(line)
        machine = {"torch": torch.__version__, "machine": platform.machine()}
        out.write_text(json.dumps(machine | both, indent=1) + "\n")


def best_rate(setting, tried):
    """The learning rate with the lowest loss among the lines of `tune`."""
    name = SAME_RATE.get(setting.name, setting.name)
    own = [line for line in tried if line["setting"] == name]
    if not own:
        raise SystemExit(
            f"{name!r} has no learning rate: expected lines of it from `skills.py "
            "tune`; run that first."
        )
    return min(own, key=lambda line: line["held_out_loss"])["rate"]


def rates_of(setting, tried):
    """The chosen one; see above for those that have others too."""
    if not setting.targets:
        return [rate for rate in RATES[True] if 1e-3 < rate < 1e-2]
    rate = best_rate(setting, tried)
    return [rate, rate / 2] if setting.rank > 4 and "all" in setting.targets else [rate]


def main():
    names = [setting.name for setting in SETTINGS]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("tune", "train"))
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument(
        "--held-out", nargs="+", choices=emoji.DESIGNERS, default=emoji.DESIGNERS
    )
    parser.add_argument("--rates", nargs="+", type=float, help="other than RATES")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    chosen = [setting for setting in SETTINGS if setting.name in options.only]
    if options.what == "tune":
        jobs = [
            (setting, rate, emoji.DESIGNERS[-1], emoji.LONG, options.steps // 2)
            for setting in chosen
            if SAME_RATE.get(setting.name, setting.name) == setting.name
            for rate in options.rates or RATES[not setting.targets]
        ]
    else:
        tried = lines(options.out, "tune")
        jobs = [
            (setting, rate, designer, emoji.SHORT, options.steps)
            for designer in options.held_out
            for setting in chosen
            for rate in options.rates or rates_of(setting, tried)
        ]
    for setting, rate, designer, learned, steps in jobs:
        done = {
            (line["setting"], line["rate"], line["held_out"], line["steps"])
            for line in lines(options.out, options.what)
        }
        if (setting.name, rate, designer, steps) in done:
            continue
        shown = setting.name == SHOWN and designer == emoji.DESIGNERS[-1]
        final = options.what == "train"
        line = learn(
            setting,
            rate,
            designer,
            learned,
            steps,
            old=20 if final else 0,
            out=ADAPTER if final and shown and options.out == OUT else None,
        )
        add_line(options.out, options.what, line)
        print({k: line[k] for k in list(line)[:1] + list(line)[3:]}, flush=True)


if __name__ == "__main__":
    main()
