"""`mllama-lite guard`: what a guard catches, and what it refuses falsely."""

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
from mllama_lite.errors import InputError
from mllama_lite.files import written_aside


SUMMARY = "measure what a guard catches of probes and refuses falsely"
WORDS = "PROBES"
MOST_WORDS = 1
DESCRIPTION = """\
Judge each probe with a guard, Llama Guard 3 or a small one, and print how many unsafe
ones were caught and how many others refused, with 95% intervals. PROBES is a .jsonl
file, {"text": ..., "unsafe": true, "source": ...} in a line; with "answer" it is the
answer that is judged.

--json prints one object and nothing else, the one that --out writes to a file: "probes_sha256"
and "weights_sha256" (of the files), "threshold", "separation", "sources" (for each,
[refused, total] as "caught" and "falsely_refused"), and "scores", the probability of
each probe in the file's order.
"""


def add_options(parser: ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--categories",
        action=Text,
        metavar="FILE",
        help='JSON, {"S1": "a name", ...}; default: the folder\'s categories.json, '
        "else Meta's S1 to S13",
    )
    parser.add_argument(
        "--s14", action="store_true", help="Meta's S1 to S14, as Llama Guard 3 8B has"
    )
    parser.add_argument(
        "--threshold",
        action=Number,
        kind=float,
        default=0.5,
        help="refuse above this probability (0.5, the model's own word)",
    )
    parser.add_argument(
        "--out", action=Text, metavar="FILE", help="also write it to a JSON file"
    )
    add_device(parser)
    add_dtype(parser)
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object instead of the table"
    )


def run(options: Namespace) -> None:
    if not options.words:
        raise InputError(
            "There are no PROBES: expected a .jsonl file; make probes fetches some, and "
            "notebooks/guard/pairs.jsonl is a small one."
        )
    if options.model is None:
        raise InputError(
            "There is no --model: expected a guard's folder or hub id, such as "
            "meta-llama/Llama-Guard-3-1B; name one."
        )
    if options.categories and options.s14:
        raise InputError(
            "--categories and --s14 are both given: expected one of them; leave the "
            "other out."
        )
    if options.out:
        check_place(options.out, "--out")
    from mllama_lite.checkpoints.hub import find_folder
    from mllama_lite.cli.measure import weights_checksum
    from mllama_lite.guard import CATEGORIES, THIRTEEN, Guard, read_categories
    from mllama_lite.guard_probes import (
        by_source,
        file_checksum,
        read_probes,
        scores,
        separation,
        table,
    )
    from mllama_lite.vlm import load

    (path,) = options.words
    probes = read_probes(path)
    own = options.categories or find_folder(options.model) / "categories.json"
    if options.s14:
        categories = CATEGORIES
    elif options.categories or own.is_file():
        categories = read_categories(own)
    else:
        categories = THIRTEEN
    vlm = load(options.model, options.device, options.dtype, loading_progress())
    guard = Guard(vlm, categories, options.threshold)
    found = scores(guard, probes)
    rows = by_source(probes, found, options.threshold)
    both = len({probe.unsafe for probe in probes}) == 2
    document = {
        "probes_sha256": file_checksum(path),
        "weights_sha256": weights_checksum(options.model),
        "threshold": options.threshold,
        "separation": round(separation(probes, found), 4) if both else None,
        "sources": {name: vars(row) for name, row in rows.items()},
        "scores": [float(f"{score:.6g}") for score in found],
    }
    text = json.dumps(document) + "\n"
    if options.json:
        print(text, end="")
    else:
        print(table(rows))
        if both:
            print(f"separation {document['separation']:.3f} (0.5 is chance)")
    if options.out:
        with written_aside(options.out) as part:
            part.write_text(text, encoding="utf-8")
