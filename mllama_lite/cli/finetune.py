"""`mllama-lite finetune`: an adapter, from a folder of images and questions."""

import os
from argparse import ArgumentParser, Namespace

from mllama_lite.cli.options import Number, Text, add_device, add_model
from mllama_lite.cli.terminal import note, training_progress
from mllama_lite.cli.train import check_out, keep_freed_memory
from mllama_lite.errors import InputError


SUMMARY = "train an adapter on a folder of images and questions, or go on with it"
WORDS = "DATA"
MOST_WORDS = 1
DESCRIPTION = f"""\
{SUMMARY.capitalize()}.
DATA is a folder with images and metadata.jsonl.
"""
RECIPE = (  # options that are settings of the Recipe
    ("rank", int, "of the adapter (8)"),
    ("alpha", float, "the adapter is multiplied by alpha / rank (2 x rank)"),
    ("dropout", float, "share of an adapter's inputs that is left out (0)"),
    ("epochs", int, "how often every sample is seen (3)"),
    ("steps", int, "steps of the optimiser, instead of epochs"),
    ("lr", float, "highest learning rate (0.82 / the model's width: 2e-4 for 4096)"),
    ("batch", int, "samples at once, which memory limits (4)"),
    ("accumulate", int, "how many batches make a step (1)"),
    ("held-out", float, "share of the samples that is measured, not learned (0.1)"),
    ("max-length", int, "tokens that a sample may have; default: the model's context"),
    ("seed", int, "of all random numbers (0)"),
)


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", action=Text, metavar="FOLDER", help="required")
    add_model(parser)
    parser.add_argument(
        "--targets",
        action=Text,
        metavar="A,B,...",
        help="what is adapted: all, self, mlp, cross, vision.local, vision.global, "
        "projector, head, or patterns of module names, each with a rank of its own after "
        "a colon if it has one, as head:64; default: self,mlp,cross, and head where the "
        "answers hold words that the model never writes",
    )
    for name, kind, meaning in RECIPE:
        parser.add_argument(f"--{name}", action=Number, kind=kind, help=meaning)
    for name, meaning in (
        ("checkpointing", "compute layers twice, for a fraction of the memory"),
        ("skip-bad", "go on without lines that are no samples"),
        ("resume", "insist that there is a training to go on with"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=meaning)
    parser.add_argument(
        "--save-every", action=Number, kind=int, default=50, help="steps (50)"
    )
    add_device(parser)
    parser.add_argument(
        "--dtype",
        action=Text,
        help="bfloat16 or float32; default: bfloat16 on a GPU that has it",
    )


def run(options: Namespace) -> None:
    if not options.words or not options.words[0].strip():
        raise InputError(
            "finetune has no data: expected a folder with images and metadata.jsonl; "
            "write mllama-lite finetune DATA --out FOLDER."
        )
    check_out(options)
    keep_freed_memory()
    from mllama_lite.adapters.finetune import finetune
    from mllama_lite.adapters.recipe import Recipe

    names = [name.replace("-", "_") for name, _, _ in RECIPE]
    given = {name: getattr(options, name) for name in names}
    if options.targets is not None:
        given["targets"] = tuple(options.targets.split(","))
    recipe = Recipe(**{name: v for name, v in given.items() if v is not None})
    finetune(
        options.model,
        options.words[0],
        options.out,
        recipe,
        device=options.device,
        dtype=options.dtype,
        checkpointing=options.checkpointing,
        skip_bad=options.skip_bad,
        save_every=options.save_every,
        resume=options.resume,
        progress=training_progress("loss", (1, 50)),
        report=note,
    )
    if os.environ.get("RANK", "0") == "0":  # the first of several processes
        print(options.out)
