"""`mllama-lite align`: a projector between a frozen encoder and a frozen language model."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from mllama_lite.cli.options import Number, Text, add_device
from mllama_lite.cli.terminal import note, training_progress
from mllama_lite.cli.train import check_out, keep_freed_memory
from mllama_lite.errors import InputError


SUMMARY = "teach a projector to show pictures to a language model, both of them frozen"
WORDS = "CAPTIONS"
MOST_WORDS = 1
DESCRIPTION = """\
Train a projector on pictures with captions. CAPTIONS is COCO's .json, or a .jsonl file with an
object a line, {"file": ..., "caption": ...}; make pictures fetches some. Of lines with "split"
those of "train" are learned, and "seen" and "unseen" are measured.

FOLDER gets features/ (what the encoder saw) and projector/. What is there already is used, so that
the same command goes on where it was stopped.
"""


def add_options(parser: ArgumentParser) -> None:
    add_common(parser)
    parser.add_argument(
        "--projector",
        choices=("pooled", "patches"),
        default="pooled",
        help="9 vectors a picture, or all places of the encoder (pooled)",
    )


def add_common(parser: ArgumentParser) -> None:
    """Options that align and instruct have in common."""
    parser.add_argument("--out", action=Text, metavar="FOLDER", help="required")
    parser.add_argument(
        "--text",
        action=Text,
        metavar="FOLDER",
        help="required: what pretrain wrote, tokenizer.model and model/",
    )
    parser.add_argument(
        "--encoder",
        action=Text,
        metavar="FILE",
        help="required: EfficientNet-Lite0's weights, or a vision transformer's as timm "
        "or torchvision names them",
    )
    parser.add_argument(
        "--features",
        action=Text,
        metavar="FOLDER",
        help="where is kept what the encoder saw; default: features/ in --out",
    )
    for name, kind, meaning in (
        ("seed", int, "of first values and order"),
        ("steps", int, "of the optimiser"),
        ("batch", int, "records in a step"),
        ("rate", float, "the highest learning rate"),
    ):
        parser.add_argument(f"--{name}", action=Number, kind=kind, help=meaning)
    parser.add_argument(
        "--skip-bad", action="store_true", help="go on without bad lines, listed"
    )
    add_device(parser)


def run(options: Namespace) -> None:
    from mllama_lite.alignment.speakers import new_projector
    from mllama_lite.alignment.training import AlignPlan, align

    plan = plan_of(options, AlignPlan())
    features, train, held_out = pictures(options)
    model, tokenizer = language_model(options)
    size = model.config.hidden_size
    projector = new_projector(options.projector, features.size, size, plan.seed)
    speaker = speak(options, model, projector, features, tokenizer)
    out = Path(options.out) / "projector"
    align(out, speaker, train, plan, held_out, training_progress("loss"))
    print(out)


def plan_of(options: Namespace, plan: Any) -> Any:
    """A plan with what the options say; what is required is looked for first."""
    if not options.words or not options.words[0].strip():
        raise InputError(
            "There are no CAPTIONS: expected a .json or .jsonl file; name one."
        )
    check_out(options)
    for name, what in (("text", "a folder of pretrain"), ("encoder", "its weights")):
        if getattr(options, name) is None:
            raise InputError(f"There is no --{name}: expected {what}; add --{name}.")
    keep_freed_memory()
    names = [name for name in vars(plan) if getattr(options, name, None) is not None]
    return replace(plan, **{name: getattr(options, name) for name in names})


def pictures(options: Namespace) -> tuple[Any, list, dict[str, list]]:
    """(Features, records to learn from, those to measure on by name)."""
    from mllama_lite.adapters.data import hold_out
    from mllama_lite.alignment.captions import read_captions
    from mllama_lite.alignment.features import encode, load_encoder
    from mllama_lite.devices import find_device

    found = read_captions(options.words[0], skip_bad=options.skip_bad, report=note)
    folder = options.features or Path(options.out) / "features"
    device, encoder = find_device(options.device), load_encoder(options.encoder)

    def told(done: int, of: int) -> None:
        if done == of or done % 800 == 0:
            note(f"looked at {done} of {of} pictures")

    paths = [path for record in found for path in record.images]
    features = encode(paths, encoder, folder, device=device, progress=told)
    train = [r for r in found if r.about.get("split", "train") == "train"]
    held_out = {
        name: [r for r in found if r.about.get("split") == name]
        for name in ("seen", "unseen")
    }
    held_out = {name: of for name, of in held_out.items() if of}
    captions = [r for r in train if r.messages[0]["content"] == "<image>"]
    if not held_out and len({r.caption for r in captions}) > 32:
        rest, taken = hold_out(captions, 1 / 16)
        away = {id(record) for record in taken}
        train = [record for record in train if id(record) not in away]
        held_out = {"held out": taken}
    note(f"{len(train)} records to learn from, {len(paths)} pictures")
    return features, train, held_out


def language_model(options: Namespace) -> tuple[Any, Any]:
    """(Llama4, Tokenizer) of the folder that pretrain wrote."""
    from mllama_lite.pretraining.writing import load_text_model
    from mllama_lite.tokenizer import Tokenizer

    folder = Path(options.text)
    tokenizer = Tokenizer.from_file(folder / "tokenizer.model")
    return load_text_model(folder / "model"), tokenizer


def speak(
    options: Namespace, model: Any, projector: Any, features: Any, tokenizer: Any
) -> Any:
    """A Speaker on the device that was asked for."""
    from mllama_lite.alignment.speakers import Speaker
    from mllama_lite.devices import find_device

    device = find_device(options.device)
    return Speaker(model.to(device), projector.to(device), features, tokenizer)
