# Generated from notebooks/01_tokenizer.ipynb: edit there, or here and run `make update`.
"""The one exception for input that cannot be used.

Introduced in chapter 1, notebooks/01_tokenizer.ipynb, and raised by every module.
"""

import reprlib


MOST_DETAILS = 20  # lines below the sentence of an InputError
_values = reprlib.Repr()
_values.maxstring = _values.maxother = _values.maxlong = 80


class InputError(ValueError):
    """Something given from outside cannot be used.

    The message is one sentence for a person: what it is about, the value that was
    given, what was expected, and what to do. The command line prints it and ends with
    exit code 2; every other exception is a bug.

    Names of files and values come from outside too. So whatever is no printable
    character is escaped, nothing can move a terminal's cursor or forge a line, and what
    is long is cut in its middle.

    Args:
        sentence: the message.
        *details: more lines, such as one for every bad line of a file; of many only
            the first MOST_DETAILS are shown.
    """

    def __str__(self) -> str:
        sentence, *details = self.args or ("",)
        lines = [readable(sentence, 1200)]
        lines += [readable(detail, 400) for detail in details[:MOST_DETAILS]]
        if len(details) > MOST_DETAILS:
            lines.append(f"and {len(details) - MOST_DETAILS} more")
        return "\n  ".join(lines)


def readable(text: object, longest: int) -> str:
    """One line of printable characters, at most `longest` of them."""
    text = str(text)
    if len(text) > longest:
        text = f"{text[: longest // 2]} … {text[-longest // 3 :]}"
    return "".join(
        character
        if character.isprintable()
        else character.encode("unicode_escape").decode()
        for character in text
    )


def shown(value: object) -> str:
    """A value as an error shows it: as Python writes it, cut if it is long or deep."""
    try:
        return _values.repr(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits
        return f"a very long {type(value).__name__}"
