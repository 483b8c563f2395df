"""Checks of chapter 15's exercises."""

import io
import json
import pickle
import struct
import tempfile
from collections import Counter, OrderedDict
from datetime import date, time
from fractions import Fraction
from pathlib import Path

import numpy as np

from exercises import exercise, expect
from mllama_lite.checkpoints.loading import load_model, save_model
from mllama_lite.checkpoints.tensor_files import read_safetensors_header
from mllama_lite.decoder import TextConfig
from mllama_lite.errors import InputError
from mllama_lite.model import Mllama, MllamaConfig


def accepted(size):
    """Whether some file of so many bytes, a length and a header, is read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        header = b"{}".ljust(max(size - 8, 0))[: max(size - 8, 0)]
        path.write_bytes((struct.pack("<Q", len(header)) + header)[:size])
        try:
            read_safetensors_header(path)
        except InputError:
            return False
    return True


@exercise("smallest-file")
def smallest_file(answer):
    whole = answer == int(answer) and 0 <= answer < 2**20
    expect(whole, "a size in bytes is a whole number")
    expect(accepted(int(answer)), "tried, and a file of so many bytes is refused")
    expect(not accepted(int(answer) - 1), "one byte less is read as well")


def _shorter(data, header):
    return data[:-2], header


def _misspelt(data, header):
    header["model.norn.weight"] = header.pop("model.norm.weight")
    return data, header


def _exchanged(data, header):
    gate, up = (
        header[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up")
    )
    gate["data_offsets"], up["data_offsets"] = up["data_offsets"], gate["data_offsets"]
    return data, header


def _reshaped(data, header):
    header["model.norm.weight"]["shape"] = [8, 2]
    return data, header


def _on_the_same(data, header):
    gate, up = (
        header[f"model.layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up")
    )
    up["data_offsets"] = gate["data_offsets"]
    return data, header


DAMAGE = {
    "a": _shorter,
    "b": _misspelt,
    "c": _exchanged,
    "d": _reshaped,
    "e": _on_the_same,
}


@exercise("damage-unnoticed")
def damage_unnoticed(answer):
    expect(answer in DAMAGE, "the answer is one of the letters")
    sizes = dict(vocab_size=20, hidden_size=16, intermediate_size=24, head_dim=8)
    heads = dict(num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=1)
    text = TextConfig(
        **sizes, **heads, cross_attention_layers=(), num_extra_embeddings=0
    )
    with tempfile.TemporaryDirectory() as folder:
        save_model(Mllama(MllamaConfig(text, vision=None)), folder)
        load_model(folder)
        path = Path(folder) / "model.safetensors"
        file = path.read_bytes()
        (length,) = struct.unpack_from("<Q", file)
        data, header = file[8 + length :], json.loads(file[8 : 8 + length])
        data, header = DAMAGE[answer](data, header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        try:
            load_model(folder)
            noticed = False
        except InputError:
            noticed = True
    expect(not noticed, "tried, and the model is refused")


class Nothing:
    """Stands for whatever a pickle imports; takes anything and does nothing."""

    def __init__(self, *_):
        pass

    def __call__(self, *_):
        return Nothing()

    __setstate__ = __setitem__ = append = extend = update = lambda self, *_: None


class Listening(pickle.Unpickler):
    """Notes what a pickle would import, and imports nothing."""

    def __init__(self, program):
        super().__init__(io.BytesIO(program))
        self.asked = set()

    def find_class(self, module, name):
        self.asked.add(f"{module} {name}")
        return Nothing()


ran = []


def trap():
    ran.append(True)
    return 0


class Trapped:
    def __reduce__(self):
        return trap, ()


OBJECTS = {
    "an ordered dict": OrderedDict(a=1),
    "two classes of one module": [date(2024, 9, 25), time(12), date(2024, 9, 26)],
    "words that are no names": {"os": "system", "builtins eval": ["posix", "system"]},
    "a name that was used before": ["collections", Counter("aab"), OrderedDict()],
    "nothing to import": [1, 2.5, None, {"a": (True,)}],
    "a fraction that calls": [Fraction(1, 3), Trapped()],
}


@exercise("names-in-a-pickle")
def names_in_a_pickle(names_in):
    for protocol in (2, 3, 4, 5):
        for what, value in OBJECTS.items():
            program = pickle.dumps(value, protocol)
            wanted = Listening(program)
            wanted.load()
            ran.clear()
            found = set(names_in(program))
            expect(not ran, f"the program was run ({what}, protocol {protocol})")
            lacks, more = wanted.asked - found, found - wanted.asked
            of = f"of {what} in protocol {protocol}"
            expect(
                not lacks, f"{len(lacks)} of {len(wanted.asked)} names {of} are lacking"
            )
            expect(
                not more, f"{min(more, default='')!r} is named, and not asked for, {of}"
            )
    old = b"(cos\nsystem\n)R(iposix\nsystem\n."
    found = set(names_in(old))
    expect(
        found == {"os system", "posix system"}, f"of {old!r} it names {sorted(found)}"
    )


def npy(array, version=(1, 0)):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array), version)
    return file.getvalue()


def npy_by_hand(header, numbers=bytes(16), length=None, version=1):
    text = header.encode("latin1")
    wide = "<H" if version == 1 else "<I"
    size = struct.pack(wide, len(text) if length is None else length)
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + numbers


def entries(descr="'<f4'", order="False", shape="(4,)", more=""):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {more}}}\n"


SQUARE = np.arange(12, dtype="<f4").reshape(3, 4)
HONEST = {
    "a matrix": npy(SQUARE),
    "one number": npy(np.float64(1.5)),
    "no numbers": npy(np.zeros((0, 3), "<f8")),
    "half precision": npy(np.ones(5, "<f2")),
    "version 2": npy(SQUARE, (2, 0)),
    "spaces and another order": npy_by_hand(
        "{'shape': (2, 2), 'descr': '<f4', 'fortran_order': False}     \n"
    ),
}
HOSTILE = {
    "no .npy file": b"\x92NUMPY" + npy(SQUARE)[6:],
    "a version that there is not": npy_by_hand(entries(), version=9),
    "a file that is cut off": npy(SQUARE)[:-1],
    "one byte too many": npy(SQUARE) + b"\0",
    "half a header": npy(SQUARE)[:40],
    "five bytes": npy(SQUARE)[:5],
    "a header longer than the file": npy_by_hand(entries(), length=60_000),
    "a header of 4 GiB": npy_by_hand(entries(), length=2**32 - 1, version=2),
    "objects, which are a pickle": npy_by_hand(entries("'|O'")),
    "a pickle in the place of numbers": npy_by_hand(
        entries("'|O'"), pickle.dumps([Trapped()])
    ),
    "columns first": npy(np.asfortranarray(SQUARE)),
    "a side below zero": npy_by_hand(entries(shape="(-2, -2)")),
    "True for a side": npy_by_hand(entries(shape="(True, 4)")),
    "a side of 4.0": npy_by_hand(entries(shape="(4.0,)")),
    "a list of sides": npy_by_hand(entries(shape="[4]")),
    "sides whose product is 2 to the 64": npy_by_hand(
        entries(shape="(4294967296, 4294967296)"), b""
    ),
    "an entry twice": npy_by_hand(entries(more="'shape': (2, 2)")),
    "an entry too many": npy_by_hand(entries(more="'more': 1")),
    "no order": npy_by_hand("{'descr': '<f4', 'shape': (4,)}\n"),
    "no dict": npy_by_hand("[1, 2, 3]\n"),
    "nothing in the header": npy_by_hand(""),
    "a header that is a program": npy_by_hand(
        entries(shape="__import__('exercises.files').files.trap() or (4,)")
    ),
    "ten thousand brackets": npy_by_hand("(" * 10_000),
}


@exercise("reader-of-npy")
def reader_of_npy(read_npy):
    for what, data in HONEST.items():
        theirs = np.load(io.BytesIO(data))
        wanted = theirs.dtype.str, theirs.shape, len(data) - theirs.nbytes
        try:
            found = read_npy(data)
        except ValueError as error:
            expect(False, f"{what} is refused: {error}")
        expect(found == wanted, f"of {what} it says {found}")
    for what, data in HOSTILE.items():
        ran.clear()
        try:
            found = read_npy(data)
        except ValueError:
            found = None
        except Exception as error:
            expect(False, f"{what} ends in {type(error).__name__}, no ValueError")
        expect(not ran, f"{what} was run")
        expect(found is None, f"{what} is read")
