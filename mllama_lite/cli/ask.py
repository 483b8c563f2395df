"""`mllama-lite ask`: one question about one picture, several, or none."""

import json
import os
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mllama_lite.cli.options import Text, add_answering, check_place, sampling
from mllama_lite.cli.terminal import loading_progress, say
from mllama_lite.errors import InputError, shown
from mllama_lite.files import exists, written_aside


if TYPE_CHECKING:
    from mllama_lite.vlm import VLM


SUMMARY = "ask about one image, several, or none, or about a sound"
WORDS = "QUESTION [IMAGE ... | SOUND]"
MOST_WORDS = None
DESCRIPTION = """\
Ask about one image, several, or none, and print the answer; or, a model that hears,
about a WAV file.

The words may come in any order. What names an existing file, or ends as a picture's
name does, is an image; what ends in .wav is a sound; exactly one other word is the
question, so put it in quotes.

--json prints one object and nothing else: "model" (null for the small one), "adapter",
"question", "images" (a list of paths; of a model that hears "sounds"), "settings" and
"answer".
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
        "--encoder",
        action=Text,
        metavar="FOLDER",
        help="Whisper's, for a model that hears; without it, encoder/ in the model's",
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
    if options.model is not None and is_hearing(options.model):
        return ask_about_sound(options, question, names, settings)
    check_hears(names, options)
    from mllama_lite.tiles import open_image

    images = [open_image(name) for name in names]
    vlm = load_with_adapter(options)
    pieces = vlm.stream(question, images=images, **settings)
    write_answer(options, question, {"images": names}, settings, pieces)
    if options.show:
        from mllama_lite.attention_maps import draw_looks, look

        assert vlm.config.vision, "a text-only model has refused the images"
        looks = look(vlm, question, images, options.max_new_tokens)
        drawn = draw_looks(looks, vlm.config.vision)
        with written_aside(options.show) as part:
            drawn.save(part, PICTURES[Path(options.show).suffix.lower()])


def write_answer(
    options: Namespace,
    question: str,
    given: dict,
    settings: dict,
    pieces: Iterator[str],
) -> None:
    """Print an answer as it is written, or all of it with --json."""
    if options.json:
        document = {
            "model": options.model,
            "adapter": options.adapter,
            "question": question,
            **given,
            "settings": settings,
            "answer": "".join(pieces),
        }
        print(json.dumps(document))
        return
    for piece in pieces:
        say(piece)
    say("\n")


def is_hearing(model: str) -> bool:
    """Whether a model is a folder with one that hears."""
    path = Path(model) / "config.json"
    if not exists(path):
        return False
    from mllama_lite.hearing import asking

    return asking.is_hearing(model)


def check_hears(names: list[str], options: Namespace) -> None:
    """Refuse sounds, and what belongs to them, for a model that does not hear."""
    sounds = [name for name in names if is_sound_name(name)]
    if sounds:
        raise InputError(
            f"{sounds[0]} is a sound: expected pictures, since this model does not hear; "
            "name one that does with --model (chapter 18)."
        )
    if options.encoder:
        raise InputError(
            f"--encoder {options.encoder} is for a model that hears: expected one; name "
            "it with --model."
        )


def ask_about_sound(
    options: Namespace, question: str, names: list[str], settings: dict
) -> None:
    """Ask a model that hears."""
    pictures = [name for name in names if not is_sound_name(name)]
    if pictures or len(names) > 1:
        raise InputError(
            f"{options.model} hears one sound and sees nothing: expected at most one name "
            f"that ends in .wav, not {', '.join(names)}; leave out the others."
        )
    for name in ("adapter", "show"):
        if getattr(options, name):
            raise InputError(
                f"--{name} is not for a model that hears: expected a model with images; "
                "leave it out."
            )
    from mllama_lite.hearing.asking import load_hearing

    hearing = load_hearing(options.model, options.encoder, options.device)
    pieces = hearing.stream(question, names[0] if names else None, **settings)
    write_answer(options, question, {"sounds": names}, settings, pieces)


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


def is_sound_name(word: str) -> bool:
    """Whether a word is meant as the path of a sound."""
    from mllama_lite import tokenizer

    return tokenizer.is_sound_name(word)


def is_image(word: str) -> bool:
    """Whether a word is meant as the path of a picture, or of a sound."""
    from mllama_lite.tiles import is_picture_name

    named = is_picture_name(word) or is_sound_name(word)
    return os.path.exists(word) and not os.path.isdir(word) or named


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
