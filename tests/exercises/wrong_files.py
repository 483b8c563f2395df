"""Wrong answers to chapter 15's exercises."""

import ast
import io
import math
import pickle
import pickletools

import numpy as np

RIGHT = {"smallest-file": 10, "damage-unnoticed": "c"}


def only_global(program):
    """Misses what protocol 4 and later take from the stack."""
    return {
        a for o, a, _ in pickletools.genops(program) if o.name in ("GLOBAL", "INST")
    }


def without_memo(program):
    """Takes the last two texts, and forgets those that are fetched again."""
    found, texts = only_global(program), []
    for operation, argument, _ in pickletools.genops(program):
        if operation.name == "STACK_GLOBAL":
            found.add(" ".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)
    return found


def all_words(program):
    return {a for _, a, _ in pickletools.genops(program) if isinstance(a, str)}


def by_running_it(program):
    class Noting(pickle.Unpickler):
        asked = set()

        def find_class(self, module, name):
            self.asked.add(f"{module} {name}")
            return super().find_class(module, name)

    noting = Noting(io.BytesIO(program))
    noting.load()
    return noting.asked


SIZES = {"<f2": 2, "<f4": 4, "<f8": 8}


def with_numpy(data):
    array = np.load(io.BytesIO(data), allow_pickle=True)
    return array.dtype.str, array.shape, len(data) - array.nbytes


def with_eval(data):
    wide = 2 if data[6] == 1 else 4
    length = int.from_bytes(data[8 : 8 + wide], "little")
    header = eval(data[8 + wide : 8 + wide + length])
    return header["descr"], header["shape"], 8 + wide + length


def parsed(data, most=10_000):
    if data[:6] != b"\x93NUMPY" or data[6:8] not in (b"\1\0", b"\2\0"):
        raise ValueError("no .npy file")
    wide = 2 if data[6] == 1 else 4
    begin = 8 + wide + int.from_bytes(data[8 : 8 + wide], "little")
    try:
        header = ast.literal_eval(data[8 + wide : begin].decode("latin1").strip())
    except (SyntaxError, MemoryError, RecursionError):
        raise ValueError("no header") from None
    if type(header) is not dict or len(header) != 3 or header["fortran_order"]:
        raise ValueError("no header that is read")
    return header["descr"], header["shape"], begin


def without_counting_the_numbers(data):
    return parsed(data)


def with_isinstance(data):
    descr, shape, begin = parsed(data)
    whole = all(isinstance(n, int) and n >= 0 for n in shape)  # True is an int
    if not whole or begin + math.prod(shape) * SIZES.get(descr, 0) != len(data):
        raise ValueError("other numbers")
    return descr, shape, begin


def refuses_everything(data):
    raise ValueError("no")


def in_64_bits(data):
    descr, shape, begin = parsed(data)
    if any(type(n) is not int or n < 0 for n in shape):
        raise ValueError("no shape")
    if descr not in SIZES or type(shape) is not tuple:
        raise ValueError("no numbers")
    if (begin + math.prod(shape) * SIZES[descr] - len(data)) % 2**64:
        raise ValueError("other numbers")
    return descr, shape, begin


WRONG = {
    "smallest-file": [0, 2, 8, 9, 16, 18, 12.5],
    "damage-unnoticed": ["a", "b", "d", "e"],
    "names-in-a-pickle": [only_global, without_memo, all_words, by_running_it],
    "reader-of-npy": [
        with_numpy,
        with_eval,
        without_counting_the_numbers,
        with_isinstance,
        refuses_everything,
        in_64_bits,
    ],
}
