"""`mllama-lite pretrain`: a language model from nothing, on text of your own."""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from mllama_lite.cli.options import Number, Text, add_device
from mllama_lite.cli.terminal import note, training_progress
from mllama_lite.cli.train import check_out, keep_freed_memory
from mllama_lite.errors import InputError


SUMMARY = "train a language model from nothing, or go on where it was stopped"
WORDS = "TEXT"
MOST_WORDS = 1
DESCRIPTION = """\
Train a language model from nothing. TEXT is a .jsonl file or a folder of them, one
document a line, {"text": ...}; or with --stream the name of a set on the hub.

FOLDER gets tokenizer.model, corpus/ (the text as tokens) and model/. What is there
already is used, so that the same command goes on where it was stopped.
"""


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", action=Text, metavar="FOLDER", help="required")
    parser.add_argument(
        "--config",
        action=Text,
        metavar="FILE",
        help="sizes, as JSON: fields of Llama4Config; without it, see --kind",
    )
    parser.add_argument(
        "--kind",
        choices=("dense", "experts", "interleaved"),
        default="interleaved",
        help="small sizes, 3 million active parameters (interleaved)",
    )
    parser.add_argument(
        "--merges",
        action=Number,
        kind=int,
        default=4096,
        help="of the vocabulary (4096)",
    )
    parser.add_argument(
        "--stream", action="store_true", help="TEXT is a set on the hub"
    )
    parser.add_argument("--subset", action=Text, help="of that set")
    parser.add_argument(
        "--column", action=Text, default="text", help="that holds the text (text)"
    )
    parser.add_argument(
        "--tokens", action=Number, kind=int, help="stop reading after so many"
    )
    for name, kind, meaning in (
        ("seed", int, "of first values and order"),
        ("steps", int, "of the optimiser"),
        ("batch", int, "pieces of text in a step"),
        ("length", int, "tokens of a piece"),
        ("rate", float, "the highest learning rate"),
    ):
        parser.add_argument(f"--{name}", action=Number, kind=kind, help=meaning)
    parser.add_argument(
        "--balance",
        choices=("loss", "bias", "none"),
        help="how experts are kept alike in use",
    )
    add_device(parser)


def run(options: Namespace) -> None:
    check_out(options)
    if not options.words:
        raise InputError(
            "There is no TEXT: expected a .jsonl file or a folder of them; name one."
        )
    for name in ("merges", "tokens"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(
                f"--{name} is {value}: expected a whole number, 1 or more; change it."
            )
    keep_freed_memory()
    from mllama_lite.devices import find_device
    from mllama_lite.pretraining.corpus import (
        Document,
        prepare,
        read_documents,
        stream_documents,
    )
    from mllama_lite.pretraining.training import TextPlan, pretrain, small_text_config
    from mllama_lite.pretraining.writing import read_text_config

    (text,), out = options.words, Path(options.out)
    names = ("seed", "steps", "batch", "length", "rate", "balance")
    given = {name: getattr(options, name) for name in names}
    plan = replace(TextPlan(), **{k: v for k, v in given.items() if v is not None})
    device = find_device(options.device)

    def documents() -> Iterator[Document]:
        if options.stream:
            return stream_documents(text, options.subset, options.column)
        return read_documents(text)

    tokenizer, corpus = prepare(
        documents, out, options.merges, options.tokens, report=note
    )
    rows = max(tokenizer.special.values()) + 1
    config = (
        read_text_config(options.config, rows)
        if options.config
        else small_text_config(rows, options.kind)
    )
    pretrain(out / "model", corpus, config, plan, training_progress("loss"), device)
    print(out / "model")
