"""Train the small SigLIP of chapter 17: python benchmarks/siglip.py

Stopped, it goes on where it was. The weights go to notebooks/measured/siglip.safetensors, and what
was measured to siglip.json beside it.
"""

import json

import torch
from safetensors.torch import save_file

from mllama_lite.files import written_aside
from mllama_lite.training_folder import STATE, only_training
from places import ROOT  # and with it pairs is found

# isort: split
import pairs

STEPS, PICTURES = 6000, 40000


def main():
    torch.set_num_threads(1)
    folder = ROOT / "trained" / "siglip"
    folder.mkdir(parents=True, exist_ok=True)
    trainer = pairs.PairTrainer(*pairs.pictures("train", PICTURES, seed=0), STEPS)
    held = pairs.pictures("test", 2000, seed=1)
    with only_training(folder):
        if (folder / STATE).is_file():
            trainer.load(folder / STATE)
        while trainer.step < STEPS:
            loss = trainer.train_step()
            if trainer.step % 500 == 0:
                trainer.save(folder / STATE)
                shares = pairs.right_names(trainer.model, *held)
                print(trainer.step, f"{loss:.2f}", *(f"{s:.3f}" for s in shares))
    name, colour = pairs.right_names(trainer.model, *held)
    with written_aside(pairs.WEIGHTS) as part:
        state = trainer.model.state_dict()
        save_file({key: t.to(torch.bfloat16) for key, t in state.items()}, part)
    stored = pairs.right_names(pairs.trained_siglip(), *held)
    found = {
        "settings": trainer.settings,
        "held out": {"pictures": 2000, "name": name, "colour": colour},
        "as stored": {"name": stored[0], "colour": stored[1]},
        "history": trainer.history,
    }
    with written_aside(pairs.WEIGHTS.with_suffix(".json")) as part:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
