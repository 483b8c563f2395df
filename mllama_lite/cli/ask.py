"""`mllama-lite ask`: one question about one picture, several, or none."""

import json
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from mllama_lite.cli.options import Text, add_answering, check_place, sampling
from mllama_lite.cli.terminal import loading_progress, say
from mllama_lite.errors import InputError, shown
from mllama_lite.files import exists, written_aside


if TYPE_CHECKING:
    from mllama_lite.vlm import VLM


SUMMARY = "ask about one image, several, or none"
WORDS = "QUESTION [IMAGE ...]"
MOST_WORDS = None
DESCRIPTION = """\
Ask about one image, several, or none, and print the answer.

The words may come in any order. What names an existing file, or ends as a picture's
name does, is an image; exactly one other word is the question, so put it in quotes.

--json prints one object and nothing else: "model" (null for the small one), "adapter",
"question", "images" (a list of paths), "settings" and "answer".
"""
# Of those that can hold any RGB picture, by the endings of their files.
PICTURES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".pdf": "PDF",
}


def add_options(parser: ArgumentParser) -> None:
    add_answering(parser)
    parser.add_argument(
        "--show",
        action=Text,
        metavar="FILE",
        help="also save a picture of where each token of the (greedy) answer looked",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object instead of the answer"
    )


def run(options: Namespace) -> None:
    # A wrong setting or file is said before gigabytes are loaded.
    question, names = question_and_images(options.words)
    if options.show:
        _check_show(options.show, names)
    settings = sampling(options)
    from mllama_lite.tiles import open_image

    images = [open_image(name) for name in names]
    vlm = load_with_adapter(options)
    pieces = vlm.stream(question, images=images, **settings)
    if options.json:
        document = {
            "model": options.model,
            "adapter": options.adapter,
            "question": question,
            "images": names,
            "settings": settings,
            "answer": "".join(pieces),
        }
        print(json.dumps(document))
    else:
        for piece in pieces:
            say(piece)
        say("\n")
    if options.show:
        from mllama_lite.attention_maps import draw_looks, look

        assert vlm.config.vision, "a text-only model has refused the images"
        looks = look(vlm, question, images, options.max_new_tokens)
        drawn = draw_looks(looks, vlm.config.vision)
        with written_aside(options.show) as part:
            drawn.save(part, PICTURES[Path(options.show).suffix.lower()])


def question_and_images(words: list[str]) -> tuple[str, list[str]]:
    """The one word that is a question, and those that are pictures, in their order."""
    example = 'write mllama-lite ask "What is this?" photo.jpg'
    images = [word for word in words if is_image(word)]
    texts = [word for word in words if not is_image(word)]
    if len(texts) == 1 and texts[0].strip():
        return texts[0], images
    if not texts:
        only = f", only {', '.join(map(shown, images))}" if images else ""
        raise InputError(
            f"ask has no question{only}: expected one in quotes, and the names of its "
            f"pictures; {example}."
        )
    if len(words) == 1:
        raise InputError(
            f"The question is {shown(texts[0])}: expected some text; {example}."
        )
    empty = [text for text in texts if not text.strip()]
    if empty:
        raise InputError(
            f"A word of ask is {shown(empty[0])}: expected a question and names of "
            f"pictures; is a variable not set? Else {example}."
        )
    what = [
        f"{shown(text)}{' (a folder)' if os.path.isdir(text) else ''}" for text in texts
    ]
    raise InputError(
        f"ask has {len(texts)} words that name no file: {', '.join(what)}: expected one, "
        f"the question; put it in quotes, or correct the name of a picture: {example}."
    )


def is_image(word: str) -> bool:
    """Whether a word is meant as the path of a picture."""
    from mllama_lite.tiles import is_picture_name

    return os.path.exists(word) and not os.path.isdir(word) or is_picture_name(word)


def load_with_adapter(options: Namespace) -> "VLM":
    """The VLM that the options name."""
    if options.adapter:
        _check_adapter(options.adapter)
    from mllama_lite.vlm import load

    vlm = load(options.model, options.device, options.dtype, loading_progress())
    if options.adapter:
        from mllama_lite.adapters.peft_files import load_adapter

        # Not merged: small changes get lost in weights of 16 bits.
        load_adapter(vlm.model, options.adapter)
    return vlm


def _check_show(path: str, names: list[str]) -> None:
    """Before anything is loaded: whether the picture of --show can be made and saved."""
    if not names:
        raise InputError(
            f"--show {path} has no image to show: expected at least one; name one as "
            "well as the question."
        )
    if Path(path).suffix.lower() not in PICTURES:
        raise InputError(
            f"--show {path} ends in {shown(Path(path).suffix)}: expected one of "
            f"{', '.join(PICTURES)}; rename it."
        )
    check_place(path, "--show")
    for name in filter(os.path.exists, names):
        if os.path.exists(path) and os.path.samefile(path, name):
            raise InputError(
                f"--show {path} is a picture that is asked about: expected another file, "
                "since this one would be lost; rename it."
            )


def _check_adapter(folder: str) -> None:
    """Before anything is loaded: whether the folder of --adapter holds one."""
    if not exists(Path(folder) / "adapter_config.json"):
        raise InputError(
            f"--adapter {folder} has no adapter_config.json: expected the folder that "
            "finetune wrote to; check the path."
        )
