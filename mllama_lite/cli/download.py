"""`mllama-lite download`: fetch a model from the hub."""

from argparse import ArgumentParser, Namespace

from mllama_lite.errors import InputError


SUMMARY = "fetch a model from the hub"
WORDS = "MODEL"
MOST_WORDS = 1
DESCRIPTION = """\
Fetch a model from the hub, or find it where it was fetched to before, and print its
folder. MODEL is its id: organisation/name.
"""


def add_options(parser: ArgumentParser) -> None:
    """There are none."""


def run(options: Namespace) -> None:
    if not options.words or not options.words[0].strip():
        raise InputError(
            "download has no model: expected the id of one, organisation/name; write "
            "mllama-lite download meta-llama/Llama-3.2-11B-Vision-Instruct."
        )
    from mllama_lite.checkpoints.hub import download

    print(download(options.words[0]))
