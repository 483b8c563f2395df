"""Write a small checkpoint of random numbers, for trying everything without the weights.

    python tools/random_checkpoint.py FOLDER [--layout hub|meta]

It has the real layout, Meta's real tokenizer and the 11B's proportions in miniature; its
answers are noise. In Meta's layout the file is written by Meta's own model; because its
params.json has no entries for the sizes of the vision encoder, which are constants in
Meta's code, a config.json with the small sizes stands in its place.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "notebooks"))

import reference
from mllama_lite.checkpoints.configs import config_to_hub
from mllama_lite.checkpoints.loading import save_model
from mllama_lite.decoder import TextConfig
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import MllamaConfig

SMALL = MllamaConfig(
    TextConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        cross_attention_layers=(1, 3),
        max_position_embeddings=600,
    ),
    VisionConfig(
        hidden_size=32,
        attention_heads=2,
        intermediate_size=64,
        num_hidden_layers=3,
        num_global_layers=1,
        image_size=56,
        intermediate_layers_indices=(0, 2),
    ),
)


def write(folder, layout="hub", config=SMALL, dtype=torch.float32):
    """Write the checkpoint; both layouts hold the same numbers."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    meta = reference.meta_model(config)
    if layout == "hub":
        save_model(reference.ours_from_meta(meta, config).to(dtype), folder)
    else:
        torch.save(meta.to(dtype).state_dict(), folder / "consolidated.00.pth")
        document = json.dumps(config_to_hub(config, dtype), indent=2)
        (folder / "config.json").write_text(document + "\n")
    shutil.copy(reference.tokenizer_path(), folder / "tokenizer.model")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--layout", choices=["hub", "meta"], default="hub")
    options = parser.parse_args()
    write(options.folder, options.layout)
    print(f"written to {options.folder}")


if __name__ == "__main__":
    main()
