"""The command line: one file for each command. Not exported from a notebook.

What goes in and out meets the world here: bad input becomes one sentence and exit code
2, Ctrl-C becomes 130, a reader that has gone 141.
"""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from mllama_lite import __version__
from mllama_lite.cli import (
    align,
    ask,
    chat,
    download,
    finetune,
    guard,
    info,
    instruct,
    measure,
    pretrain,
    train,
)
from mllama_lite.cli.options import choices, parse
from mllama_lite.cli.terminal import complain, silence
from mllama_lite.errors import InputError, shown


COMMANDS = {
    "ask": ask,
    "chat": chat,
    "info": info,
    "download": download,
    "train": train,
    "measure": measure,
    "finetune": finetune,
    "pretrain": pretrain,
    "guard": guard,
    "align": align,
    "instruct": instruct,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, 2 if the input cannot be used."""
    _open_streams()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with warnings.catch_warnings(), _interrupts() as interrupted:
            if not sys.warnoptions:  # of libraries; what matters is said in a sentence
                warnings.simplefilter("ignore")
            try:
                code = _run(words)
            except ImportError:  # which an interrupted import may end in
                if not interrupted:
                    raise
                return 130
            sys.stdout.flush()
            return code
    except InputError as error:
        complain(error)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as with | head
        silence(sys.stdout)
        return 141
    except OSError as error:
        silence(sys.stdout)
        what = "The output" if error.filename is None else error.filename
        complain(
            InputError(
                f"{what} cannot be read or written ({error.strerror or error}): expected "
                "a file that can; check its name, its permissions and the disk."
            )
        )
        return 2
    except MemoryError:
        complain(
            InputError(
                "There is not enough memory: expected more of it; close other programs, "
                "or use a smaller model or picture."
            )
        )
        return 2


def _run(words: list[str]) -> int:
    """Find the command that the words begin with, and run it on the others."""
    if sys.stdout is None:
        raise InputError(
            "The standard output is closed: expected one to write to; send it to "
            "/dev/null if it is not wanted."
        )
    if not words:
        complain(_usage())
        return 2
    name, *rest = words
    if name in ("-h", "--help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"mllama-lite {__version__}")
        return 0
    if name not in COMMANDS:
        raise InputError(
            f"There is no command {shown(name)}: expected one of "
            f"{', '.join(COMMANDS)}{choices(name, COMMANDS)}; see mllama-lite --help."
        )
    _keep_libraries_quiet()
    options = parse(name, COMMANDS[name], rest)
    return 0 if options is None else COMMANDS[name].run(options) or 0


def _usage() -> str:
    return f"usage: mllama-lite {{{','.join(COMMANDS)}}} ..."


def _overview() -> str:
    lines = [f"  {name:10} {module.SUMMARY}" for name, module in COMMANDS.items()]
    return "\n".join(
        [
            _usage(),
            "",
            "Ask Llama 3.2 Vision about pictures.",
            "",
            *lines,
            "",
            "mllama-lite COMMAND --help tells more; mllama-lite --version, which this is.",
        ]
    )


def _open_streams() -> None:
    """Leave no standard stream closed, and none that dies of a character.

    A file that is opened later would get the number of a closed stream, and what a
    library writes to that stream.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")


def _keep_libraries_quiet() -> None:
    """Lines of torch and the hub's library would come before our own."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


@contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Ctrl-C ends a command without a line; what it was caught in is kept quiet."""
    interrupted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def interrupt(number: int, frame: object) -> None:
        interrupted.append(number)
        sys.unraisablehook = lambda _: None
        raise KeyboardInterrupt

    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    if before is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
        sys.unraisablehook = hook
