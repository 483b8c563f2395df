# Generated from notebooks/01_tokenizer.ipynb: edit there, or here and run `make update`.
"""The one exception for input that cannot be used.

Introduced in chapter 1, notebooks/01_tokenizer.ipynb, and raised by every module.
"""


class InputError(ValueError):
    """Something given from outside cannot be used.

    The message is one sentence for a person: what it is about, the value that was
    given, what was expected, and what to do. The command line prints it and ends with
    exit code 2; every other exception is a bug.
    """
