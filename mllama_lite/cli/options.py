"""Options and words of a command: anywhere in any order, and wrong ones in a sentence."""

import argparse
import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from mllama_lite.errors import InputError, shown
from mllama_lite.files import system_errors


class _Parser(argparse.ArgumentParser):
    """Raises an InputError instead of printing a screen."""

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        raise InputError(
            f"The options cannot be used ({message}): expected those that {self.prog} "
            "--help lists; correct them."
        )


class Text(argparse.Action):
    """An option with a text that is not empty."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: Any,
        option: str | None = None,
    ) -> None:
        if not value.strip():
            raise InputError(
                f"{option} is {shown(value)}: expected some text; is a variable not set? "
                "Leave the option out if it is not wanted."
            )
        setattr(namespace, self.dest, value)


class Number(argparse.Action):
    """An option with a number, whole or not; its range is checked where it is used."""

    def __init__(
        self, option_strings: list[str], dest: str, kind: type, **settings: Any
    ):
        super().__init__(option_strings, dest, metavar="N", **settings)
        self.kind = kind

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        value: Any,
        option: str | None = None,
    ) -> None:
        try:
            setattr(namespace, self.dest, self.kind(value))
        except ValueError:
            what = "a whole number" if self.kind is int else "a number"
            raise InputError(
                f"{option} is {shown(value)}: expected {what}; change it."
            ) from None


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action=Text,
        help="hub id or folder, either layout; default: the small shipped one",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        action=Text,
        help="cpu, cuda, cuda:1, ...; default: cuda if there is one",
    )


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """In which numbers to compute."""
    parser.add_argument(
        "--dtype", action=Text, help="bfloat16, float16, float32; default: as stored"
    )


def add_answering(parser: argparse.ArgumentParser) -> None:
    """Options of the commands that answer questions."""
    add_model(parser)
    parser.add_argument(
        "--adapter",
        action=Text,
        metavar="FOLDER",
        help="answer with the adapter that finetune made",
    )
    add_device(parser)
    add_dtype(parser)
    for name, kind, default, meaning in (
        ("max-new-tokens", int, 256, "tokens that an answer may have (256)"),
        ("temperature", float, 0.0, "0 (the default) is greedy"),
        ("top-k", int, 0, "keep the k likeliest tokens; 0 (the default) keeps all"),
        ("top-p", float, 1.0, "keep the likeliest of this probability together (1)"),
        ("min-p", float, 0.0, "keep what is so likely beside the likeliest (0)"),
        ("seed", int, None, "of the random numbers; default: another every time"),
    ):
        parser.add_argument(
            f"--{name}", action=Number, kind=kind, default=default, help=meaning
        )


def sampling(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of Sampling among a command's options, checked."""
    from mllama_lite.generation import Sampling

    names = ("temperature", "top_k", "top_p", "min_p", "seed")
    settings = {name: getattr(options, name) for name in names}
    Sampling(**settings)
    if options.max_new_tokens < 1:
        raise InputError(
            f"max_new_tokens is {shown(options.max_new_tokens)}: expected a whole "
            "number, 1 or more; change it."
        )
    return settings | {"max_new_tokens": options.max_new_tokens}


def check_place(path: str, option: str) -> None:
    """Before anything takes long: whether a file can be written there."""
    if not Path(path).parent.is_dir():
        raise InputError(
            f"{option} {path} is in a folder that does not exist: expected an existing "
            "one; make it first."
        )
    with system_errors(path, "written"):
        if Path(path).exists() and not Path(path).is_file():
            raise InputError(
                f"{option} {path} is a folder or a device: expected the name of a file "
                "to write; choose another."
            )
        if Path(path).exists() and not os.access(path, os.W_OK):
            raise InputError(
                f"{option} {path} is there and must not be written to: expected another "
                "name, or permission; choose one."
            )
        part = Path(f"{path}.part")  # as `written_aside` will call it
        part.touch()
        part.unlink()


def parse(
    name: str, command: ModuleType, words: list[str]
) -> argparse.Namespace | None:
    """The options of a command; its other words, in order, are `options.words`.

    Args:
        name: of the command.
        command: module with SUMMARY, WORDS (as usage shows them), MOST_WORDS (None for
            any number), `add_options` and perhaps DESCRIPTION.
        words: what follows the name.

    Returns:
        Namespace, or None if --help was asked for and given.
    """
    parser = _Parser(
        prog=f"mllama-lite {name}",
        usage=f"mllama-lite {name} {command.WORDS} [options]".replace("  ", " "),
        description=getattr(command, "DESCRIPTION", command.SUMMARY),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument(
        "-h", "--help", action="store_true", help="show this and do nothing else"
    )
    command.add_options(parser)
    end = words.index("--") if "--" in words else len(words)
    options, others = parser.parse_known_args(_joined(words[:end]))
    if options.help:
        print(parser.format_help(), end="")
        return None
    known = [
        option for action in parser._actions[1:] for option in action.option_strings
    ]
    for word in others:
        if re.match(r"--?\w\S*$", word):
            raise InputError(
                f"There is no option {shown(word.split('=')[0])} of {name}: expected one "
                f"that {parser.prog} --help lists{choices(word.split('=')[0], known)}; "
                "correct it."
            )
    options.words = others + words[end + 1 :]
    most = command.MOST_WORDS
    if most is not None and len(options.words) > most:
        raise InputError(
            f"{name} has {len(options.words)} words, the last {shown(options.words[-1])}: "
            f"expected {most or 'none'} beside the options; see {parser.prog} --help."
        )
    return options


def choices(word: str, known: Iterable[str]) -> str:
    """What was probably meant, to be put into a sentence."""
    near = difflib.get_close_matches(word[:80], list(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _joined(words: list[str]) -> list[str]:
    """Negative numbers tied to the options before them: -inf is no option."""
    joined: list[str] = []
    for word in words:
        after_option = joined and re.fullmatch(r"--[\w-]+", joined[-1])
        if after_option and re.fullmatch(
            r"-(\d.*|\.\d.*|inf|infinity|nan)", word, re.IGNORECASE
        ):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined
