"""`mllama-lite train`: the small shipped model, made anew."""

from argparse import ArgumentParser, Namespace
from dataclasses import replace

from mllama_lite.cli.options import Number, Text, add_device
from mllama_lite.cli.terminal import training_progress
from mllama_lite.errors import InputError


SUMMARY = "train the small shipped model anew, or go on where it was stopped"
WORDS = ""
MOST_WORDS = 0


def add_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out", action=Text, metavar="FOLDER", help="required")
    parser.add_argument(
        "--start",
        action=Text,
        metavar="FOLDER",
        help="a small model to go on from",
    )
    parser.add_argument(
        "--plan",
        choices=("first", "drawings", "rows", "numbers"),
        help="first makes a model from nothing, the others go on from one, in this order; "
        "without it, first, or drawings where there is a start",
    )
    for name, meaning in (
        ("seed", "of all random numbers"),
        ("vision-steps", "steps of the first stage"),
        ("joint-steps", "steps of the second stage"),
        ("decay-steps", "how many of them lower the learning rate"),
    ):
        parser.add_argument(f"--{name}", action=Number, kind=int, help=meaning)
    add_device(parser)


def run(options: Namespace) -> None:
    check_out(options)
    keep_freed_memory()
    from mllama_lite.devices import find_device
    from mllama_lite.small_model import training

    names = ("seed", "vision_steps", "joint_steps", "decay_steps")
    given = {name: getattr(options, name) for name in names}
    name = options.plan or ("first" if options.start is None else "drawings")
    if name != "first" and options.start is None:
        raise InputError(
            f"There is no --start: expected the folder of a model for {name!r} to go on "
            "from; add --start FOLDER."
        )
    plan = {
        "first": training.Plan(),
        "drawings": training.DRAWINGS,
        "rows": training.DRAWN_ROWS,
        "numbers": training.DRAWN_NUMBERS,
    }[name]
    plan = replace(plan, **{k: v for k, v in given.items() if v is not None})
    training.train(
        options.out,
        plan,
        training_progress(),
        device=find_device(options.device),
        start=options.start,
    )
    print(options.out)


def check_out(options: Namespace) -> None:
    """Whether the folder to write to was named."""
    if options.out is None:
        raise InputError(
            "There is no --out: expected the folder to write to; add --out FOLDER."
        )


def keep_freed_memory() -> None:
    """Let the C library keep large blocks for the next step of training.

    glibc gives them back to the system and asks for them anew, which took a sixth of
    the time of a step on a CPU. Elsewhere there is nothing to set.
    """
    import ctypes

    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):
        return
    set_option(-3, 2**30)  # M_MMAP_THRESHOLD, bytes
    set_option(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, bytes
