"""`mllama-lite chat`: a conversation at a terminal, or through a pipe."""

import os
import re
import signal
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mllama_lite.cli.ask import is_image, is_sound_name, load_with_adapter
from mllama_lite.cli.options import Text, add_answering, choices, sampling
from mllama_lite.cli.terminal import complain, note, say
from mllama_lite.errors import InputError, readable, shown


if TYPE_CHECKING:
    from PIL.Image import Image

    from mllama_lite.model import MllamaConfig
    from mllama_lite.vlm import VLM


SUMMARY = "hold a conversation at a terminal"
WORDS = "[IMAGE ...]"
MOST_WORDS = None
HELP = """\
Each line is a question. What comes before it, or alone on a line, and names a file is
a picture: type its path, or drag it into the terminal.
  /image PATH  show a picture with the next question
  /reset       forget all that was said and shown
  /help        show this
  /quit        leave, as does Ctrl-D; Ctrl-C stops an answer"""
DESCRIPTION = f"""\
Hold a conversation: the model remembers what was said and shown, up to its context.

{HELP}

Lines may come through a pipe as well: answers go to standard output, one after the
other, and everything else to standard error. The exit code is 2 if a line was refused.
"""


SMALL = """\
This is the small model that comes with the package. It knows handwritten digits and
coloured shapes on light paper and answers "I don't know" to most else. It has learned
from single questions: what was said before may confuse it, which /reset ends."""


def add_options(parser: ArgumentParser) -> None:
    add_answering(parser)
    parser.add_argument(
        "--system", action=Text, metavar="TEXT", help="a message that all answers heed"
    )


def run(options: Namespace) -> int:
    strange = [word for word in options.words if not is_image(word)]
    if strange:
        raise InputError(
            f"chat begins with {shown(strange[0])}: expected names of pictures only; ask "
            "when it has begun."
        )
    settings = sampling(options)
    if sys.stdin is None:
        raise InputError(
            "The standard input is closed: expected lines to read; open it."
        )
    talk = Talk(load_with_adapter(options), settings, options.system)
    if talk.at_terminal:
        note(_greeting(options.model, talk.vlm.config))
    for word in options.words:
        talk.show(word)
    return talk.hold()


def _greeting(model: str | None, config: "MllamaConfig") -> str:
    """What is talked to, what it cannot do, and how to leave."""
    lines = ["/help lists what can be typed, /quit leaves."]
    if model is None:
        lines.append(SMALL)
    elif config.vision is None:
        lines.append("This model reads text only: it cannot be shown pictures.")
    longest = config.text.max_position_embeddings
    lines.append(f"It can remember {longest} tokens; what is longer is refused.")
    return "\n".join(lines)


class Talk:
    """A conversation of a person and a model.

    Args:
        vlm: VLM.
        settings: dict of `max_new_tokens` and the settings of Sampling.
        system: text of a system message, or None.
    """

    def __init__(self, vlm: "VLM", settings: dict, system: str | None = None) -> None:
        self.vlm, self.settings, self.system = vlm, settings, system
        self.at_terminal = sys.stdin.isatty()
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.chat = self.vlm.conversation(self.system)
        self.images: list[Image] = []

    def hold(self) -> int:
        """Take lines until they end; returns the exit code."""
        refused = False
        for line in self._lines():
            try:
                if self.take(line.strip()):
                    break
            except InputError as error:
                complain(error)
                refused = True
        return 2 if refused and not self.at_terminal else 0

    def take(self, line: str) -> bool:
        """Do what a line says; returns whether the conversation is over."""
        command, _, rest = line.partition(" ")
        match command:
            case "/quit":
                return True
            case "/help":
                note(HELP)
            case "/reset":
                self.reset()
                note("A new conversation.")
            case "/image":
                if not rest.strip():
                    raise InputError(
                        "/image has no picture: expected the path of one after it; "
                        "write /image photo.jpg."
                    )
                path, left = first_word(rest)
                self.show(path if not left else rest.strip())
            case _:
                self._hear(line)
        return False

    def _hear(self, line: str) -> None:
        """A line that is no command: pictures, a question, or both."""
        word, rest = first_word(line)
        while word and is_image(word):
            self.show(word)
            line = rest
            word, rest = first_word(line)
        if re.fullmatch(r"/\w+", word):
            commands = ("/image", "/reset", "/help", "/quit")
            raise InputError(
                f"There is no command {shown(word)}: expected one of "
                f"{', '.join(commands)}{choices(word, commands)}; /help tells more."
            )
        if line:
            self.answer(line)

    def show(self, path: str) -> None:
        """Open a picture, for the next question."""
        from mllama_lite.tiles import open_image

        if is_sound_name(path):
            raise InputError(
                f"{path} is a sound: expected a picture, since this model does not hear; "
                "ask one that does, with mllama-lite ask (chapter 18)."
            )
        if self.vlm.config.vision is None:
            raise InputError(
                f"{path} cannot be shown to a text-only model: expected text; use a "
                "vision model."
            )
        image = open_image(path)
        self.images.append(image)
        if self.at_terminal:
            size = f"{image.width} x {image.height} pixels"
            note(f"{readable(path, 200)}, {size}, is shown with the next question.")

    def answer(self, question: str) -> None:
        """Ask, and write the answer as it comes."""
        pieces = self.chat.stream(question, images=self.images, **self.settings)
        self.images = []
        with self._stoppable() as stopped:
            try:
                for piece in pieces:
                    say(piece)
                    if stopped:
                        break
            except KeyboardInterrupt:
                if not self.at_terminal:
                    raise
                # In the middle of a step: what the model remembers is not whole.
                self.reset()
                note("\nStopped at once; the conversation begins anew.", end="")
            finally:
                pieces.close()  # type: ignore[attr-defined]  # it is a generator
        say("\n")

    @contextmanager
    def _stoppable(self) -> Iterator[list[int]]:
        """At a terminal the first Ctrl-C ends an answer with its next token."""
        stopped: list[int] = []
        if not self.at_terminal:
            yield stopped
            return

        def stop(number: int, frame: object) -> None:
            if stopped:
                raise KeyboardInterrupt
            stopped.append(number)

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield stopped
        finally:
            signal.signal(signal.SIGINT, before)

    def _lines(self) -> Iterator[str]:
        """What is typed, or comes through a pipe."""
        if not self.at_terminal:
            yield from sys.stdin
            return
        try:
            import readline  # noqa: F401  (history and editing, where there is any)
        except ImportError:
            pass
        while True:
            try:
                if sys.stdout.isatty():
                    yield input("> ")
                else:
                    note("> ", end="")
                    line = sys.stdin.readline()
                    if not line:
                        return
                    yield line
            except EOFError:
                note("")
                return
            except KeyboardInterrupt:
                note("\n(/quit or Ctrl-D leaves)")


def first_word(text: str) -> tuple[str, str]:
    """The first word of a line as a shell takes it, and what follows.

    Paths come quoted, or with backslashes before their spaces, when a file is dragged
    into a terminal.
    """
    text = text.strip()
    for quoted in (r"'([^']+)'(?=\s|$)", r'"([^"]+)"(?=\s|$)'):
        if found := re.match(quoted, text):
            return found[1], text[found.end() :].strip()
    found = re.match(r"(?:\\.|[^\s\\])+", text)
    if not found:
        return "", text
    word = re.sub(r"\\(.)", r"\1", found[0])
    if not os.path.exists(word):  # backslashes of a path of Windows
        word = found[0] if os.path.exists(found[0]) else word
    return word, text[found.end() :].strip()
