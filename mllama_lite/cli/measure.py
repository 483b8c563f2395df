"""`mllama-lite measure`: how often the small model, or another, answers right."""

import json
from argparse import ArgumentParser, Namespace

from mllama_lite.cli.options import (
    Number,
    Text,
    add_device,
    add_dtype,
    add_model,
    check_place,
)
from mllama_lite.cli.terminal import loading_progress
from mllama_lite.files import written_aside


SUMMARY = "answer held-out questions and print how many were right"
WORDS = ""
MOST_WORDS = 0
DESCRIPTION = """\
Answer held-out questions about pictures of digits and shapes, and print how many
answers were right, also with another picture, a blank one and none.

--json prints one object and nothing else, the one that --out writes to a file: "split",
"weights_sha256" (of the model's files), "dtype" and "counts", for each column an object
that gives for each row [right, total].
"""


def add_options(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--split",
        action=Text,
        default="test",
        help="validation or test (the default)",
    )
    parser.add_argument(
        "--questions", action=Number, kind=int, default=500, help="in each row (500)"
    )
    parser.add_argument(
        "--out",
        action=Text,
        metavar="FILE",
        help="also write the counts to a JSON file",
    )
    add_device(parser)
    add_dtype(parser)
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object instead of the table"
    )


def run(options: Namespace) -> None:
    if options.out:
        check_place(options.out, "--out")
    from mllama_lite.small_model.evaluation import (
        answers,
        best_guesses,
        exact_match,
        held_out,
        table,
    )
    from mllama_lite.vlm import load

    items = held_out(options.split, options.questions)
    vlm = load(options.model, options.device, options.dtype, loading_progress())
    counts = {"right": exact_match(items, answers(vlm, items))}
    for images in ("wrong", "blank", "none"):
        counts[images] = exact_match(items, answers(vlm, items, images))
    sample = held_out("train", 2 * options.questions, seed=1)
    counts["guess"] = exact_match(items, best_guesses(items, sample))
    unseen = held_out(options.split, options.questions, unseen_wording=True)
    counts["unseen"] = exact_match(unseen, answers(vlm, unseen))
    document = {
        "split": options.split,
        "weights_sha256": weights_checksum(options.model),
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
    }
    # A row a line: columns of [right, total].
    rows = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(column)}" for name, column in counts.items()
    )
    text = json.dumps(document)[:-1] + f', "counts": {{\n{rows}\n}}}}\n'
    print(text if options.json else table(counts) + "\n", end="")
    if options.out:
        with written_aside(options.out) as part:
            part.write_text(text, encoding="utf-8")


def weights_checksum(model: str | None) -> str:
    """SHA-256 of the files that the weights are in."""
    import hashlib

    from mllama_lite.checkpoints.hub import find_folder

    weights = hashlib.sha256()
    for path in sorted(find_folder(model).glob("*.safetensors")):
        weights.update(path.read_bytes())
    return weights.hexdigest()
