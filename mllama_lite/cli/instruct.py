"""`mllama-lite instruct`: questions and answers for a language model that is shown pictures."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from mllama_lite.cli.align import (
    add_common,
    language_model,
    pictures,
    plan_of,
    speak,
)
from mllama_lite.cli.options import Text
from mllama_lite.cli.terminal import training_progress
from mllama_lite.errors import InputError


SUMMARY = "go on from align with questions, and let the language model learn too"
WORDS = "CONVERSATIONS"
MOST_WORDS = 1
DESCRIPTION = """\
Train on questions about pictures. CONVERSATIONS is LLaVA's .json or .jsonl, with conversations and
<image>; or a file as align reads it, with "concept", whose pictures are asked four questions each.

FOLDER gets features/ and model/, where projector.safetensors and model.safetensors are. What is
there already is used, so that the same command goes on where it was stopped.
"""


def add_options(parser: ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument(
        "--start",
        action=Text,
        metavar="FOLDER",
        help="required: what align wrote, with projector/",
    )
    parser.add_argument(
        "--learns",
        choices=("projector", "lora", "all"),
        default="lora",
        help="with the projector: nothing, low-rank adapters, or the whole language "
        "model (lora)",
    )


def run(options: Namespace) -> None:
    from mllama_lite.alignment.speakers import load_speaker, projector_of
    from mllama_lite.alignment.training import AlignPlan, instruct

    plan = plan_of(options, AlignPlan())
    if options.start is None:
        raise InputError(
            "There is no --start: expected the folder that align wrote; add --start."
        )
    features, train, held_out = pictures(options)
    model, tokenizer = language_model(options)
    start = Path(options.start) / "projector"
    size = model.config.hidden_size
    projector = projector_of(start, features.size, size)
    speaker = speak(options, model, projector, features, tokenizer)
    load_speaker(start, speaker)
    out = Path(options.out) / "model"
    instruct(out, speaker, train, plan, held_out, training_progress("loss"))
    print(out)
