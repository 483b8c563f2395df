# Generated from notebooks/15_files.ipynb: edit there, or here and run `make update`.
"""Where tensors lie in files: safetensors and `.pth`, read a tensor at a time.

Built in chapter 15, notebooks/15_files.ipynb. Reading a file's index reads no
numbers; `StoredTensor.read_into` then puts them straight where they belong.
"""

import io
import math
import pickletools
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mllama_lite.errors import InputError, shown
from mllama_lite.files import (
    ANY_TEXT,
    Kind,
    check_fields,
    damaged_file,
    list_of,
    maybe,
    object_of,
    opened,
    parse_json,
    whole,
)


CHUNK = 1 << 24  # numbers that are converted at a time
MOST_HEADER = 1 << 24  # bytes of names and shapes; the 90B has some 200 thousand


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Attributes:
        file: path.
        offset: of the first byte.
        dtype, shape: as stored, row-major.
    """

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read_into(self, destination: torch.Tensor) -> None:
        """Copy the numbers into a tensor of the same shape, whatever dtype or device.

        A contiguous CPU tensor of the same dtype is filled by the file system itself;
        anything else goes through a buffer of at most CHUNK numbers.
        """
        if not destination.is_contiguous():
            destination.copy_(self.read())
            return
        direct = destination.device.type == "cpu" and destination.dtype == self.dtype
        flat = destination.view(-1)
        with opened(self.file, buffering=0) as file:
            file.seek(self.offset)
            for part in flat.split(CHUNK):
                buffer = part if direct else torch.empty(len(part), dtype=self.dtype)
                bytes_wanted = buffer.view(torch.uint8).numpy().data
                while bytes_wanted:
                    count = file.readinto(bytes_wanted)
                    if not count:
                        raise damaged_file(
                            self.file, "it ended while it was being read"
                        )
                    bytes_wanted = bytes_wanted[count:]
                if not direct:
                    part.copy_(buffer)

    def read(self) -> torch.Tensor:
        """The tensor as it is stored, on the CPU."""
        result = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(result)
        return result


SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}

NOTES = object_of(Kind("text", lambda value: type(value) is str), 10_000)
SAFETENSORS_FIELDS = {
    "dtype": ANY_TEXT,
    "shape": list_of(whole(0, 2**48), most=16),
    "data_offsets": list_of(whole(0, 2**48), least=2, most=2),
}


def read_safetensors(
    path: Path | str,
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Names and places of the tensors of a `.safetensors` file, and what is noted there.

    The file begins with the length of the header, 8 bytes little-endian; then the
    header, JSON; then the numbers: one tensor after the other, without a gap and
    without a byte that belongs to two of them or to none.

    Args:
        path: of the file.

    Returns:
        (dict from name to StoredTensor, dict of texts).

    Raises:
        InputError: the file breaks a promise of the format, holds numbers that are no
            floats, or has a header of more than MOST_HEADER bytes.
    """
    path = Path(path)
    with opened(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if 8 + length > size:
            raise damaged_file(path, f"its header does not fit into its {size} bytes")
        if length > MOST_HEADER:
            raise InputError(
                f"{path} has a header of {length:,} bytes: expected at most "
                f"{MOST_HEADER:,}; a Llama 3 model's is a hundredth of that."
            )
        header = parse_json(file.read(length), f"the header of {path}")
    notes = check_fields(header, {"__metadata__": maybe(NOTES)}, path)
    header.pop("__metadata__", None)
    tensors, spans = {}, []
    for name, entry in header.items():
        given = check_fields(entry, SAFETENSORS_FIELDS, path, f"{name}.")
        dtype = float_dtype(path, name, SAFETENSORS_DTYPES, given["dtype"])
        begin, end = given["data_offsets"]
        if end - begin != math.prod(given["shape"]) * dtype.itemsize:
            raise damaged_file(
                path, f"{name} has {end - begin} bytes for {given['shape']}"
            )
        spans.append((begin, end, name))
        place = 8 + length + begin
        tensors[name] = StoredTensor(path, place, dtype, tuple(given["shape"]))
    covered = 0
    for begin, end, name in sorted(spans):
        if begin != covered:
            raise damaged_file(
                path, f"{name} begins at byte {begin}, what is before ends at {covered}"
            )
        covered = end
    if 8 + length + covered != size:
        raise damaged_file(
            path, f"its tensors end at byte {8 + length + covered}, it has {size}"
        )
    return tensors, notes.get("__metadata__", {})


def read_safetensors_header(path: Path | str) -> dict[str, StoredTensor]:
    """The tensors alone; see `read_safetensors`."""
    return read_safetensors(path)[0]


def float_dtype(
    path: Path, name: str, known: dict[str, torch.dtype], stored: str
) -> torch.dtype:
    """The dtype that a file calls so; one that is not known is refused."""
    if stored not in known:
        raise InputError(
            f"{name} in {path} has dtype {stored}: expected one of "
            f"{', '.join(SAFETENSORS_DTYPES)}; quantised files do not load."
        )
    return known[stored]


MOST_PICKLE = 1 << 20  # bytes; those of the 90B have a quarter of that

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
}


@dataclass(frozen=True)
class Storage:
    """A stretch of numbers in a `.pth` file.

    Attributes:
        kind: name of torch's class for it, which tells the dtype.
        key: name of the member of the zip file that holds it.
        length: in numbers.
    """

    kind: str
    key: str
    length: int


@dataclass(frozen=True)
class View:
    """A tensor as a pickle describes it: which numbers of a storage, in what shape."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Name:
    """What a pickle would import; here it stays a name."""

    name: str


def _sizes(*values: object) -> bool:
    """Whether these can be lengths, shapes and offsets."""
    return all(type(value) is int and 0 <= value < 2**48 for value in values)


def _storage(
    word: object, kind: object, key: object, device: object, length: Any
) -> Storage:
    """What a pickle asks for with BINPERSID."""
    if word != "storage" or type(kind) is not Name or not _sizes(length):
        raise ValueError("what it calls a storage is none")
    return Storage(kind.name.removeprefix("torch "), str(key), length)


def _view(storage: Any, offset: Any, shape: Any, stride: Any, *_: object) -> View:
    """What torch's `_rebuild_tensor_v2` would make a tensor of."""
    fits = type(storage) is Storage and len(shape) == len(stride) <= 16
    if not fits or not _sizes(offset, *shape, *stride):
        raise ValueError("what it calls a tensor has no shape, or one below zero")
    return View(storage, offset, shape, stride)


def _empty() -> dict:
    """An OrderedDict as pickles make it; what it holds comes afterwards."""
    return {}


# The functions that a pickle of tensors calls, and what is done in their place.
STAND_INS: dict[str, Callable] = {
    "collections OrderedDict": _empty,
    "torch._utils _rebuild_tensor_v2": _view,
    "torch._utils _rebuild_parameter": lambda view, *_: view,
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}


def read_pickle(program: bytes, path: Path | str) -> Any:
    """What the pickle of a `.pth` file describes.

    The program is read, not run: only the operations that `torch.save` writes for
    tensors are known here, nothing is imported, and no function of torch's is called.

    Args:
        program: the pickle.
        path: what to call the file in an error.

    Returns:
        dict, tuple, text, number or View; whatever the program leaves on its stack.

    Raises:
        InputError: it asks for anything else, or makes no sense.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}
    argument: Any

    def taken(begin: int) -> list[Any]:
        """What lies above a place on the stack, removed from it."""
        values = stack[begin:]
        del stack[begin:]
        return values

    try:
        for operation, argument, _ in pickletools.genops(program):
            match operation.name:
                case "PROTO":
                    pass
                case "BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1":
                    stack.append(argument)
                case "BINFLOAT":
                    stack.append(argument)
                case "NONE" | "NEWTRUE" | "NEWFALSE" | "EMPTY_TUPLE":
                    stack.append(CONSTANTS[operation.name])
                case "EMPTY_DICT":
                    stack.append({})
                case "BINPUT" | "LONG_BINPUT":
                    memo[argument] = stack[-1]
                case "BINGET" | "LONG_BINGET":
                    stack.append(memo[argument])
                case "MARK":
                    marks.append(len(stack))
                case "TUPLE":
                    stack.append(tuple(taken(marks.pop())))
                case "TUPLE1" | "TUPLE2" | "TUPLE3":
                    stack.append(tuple(taken(-int(operation.name[-1]))))
                case "SETITEM" | "SETITEMS":
                    one = operation.name == "SETITEM"
                    values = taken(-2 if one else marks.pop())
                    keys, values = values[::2], values[1::2]
                    if type(stack[-1]) is not dict or {*map(type, keys)} - {str, int}:
                        raise ValueError("it fills something that is no dict of names")
                    stack[-1].update(zip(keys, values, strict=True))
                case "GLOBAL":
                    storage = re.fullmatch(r"torch \w+Storage", argument)
                    if argument not in STAND_INS and not storage:
                        raise _more_than_tensors(path, argument)
                    stack.append(Name(argument))
                case "BINPERSID":
                    stack.append(_storage(*stack.pop()))
                case "REDUCE":
                    arguments, called = taken(-2)[::-1]
                    stack.append(STAND_INS[called.name](*arguments))
                case "BUILD":  # attributes of an OrderedDict, which nobody reads
                    stack.pop()
                case "STOP":
                    return stack.pop()
                case other:
                    raise _more_than_tensors(path, other)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise damaged_file(path, f"its pickle makes no sense: {error}") from None
    raise damaged_file(path, "its pickle has no end")


def _more_than_tensors(path: Path | str, what: object) -> InputError:
    return InputError(
        f"{path} holds more than tensors (its pickle asks for {shown(what)}): expected "
        "a state dict; nothing of it was run, because that could be any program; get "
        "the original file."
    )


def read_pth_index(path: Path | str) -> dict[str, StoredTensor]:
    """Names and places of the tensors of a `.pth` file, without reading a number.

    Args:
        path: of the file.

    Returns:
        dict from name to StoredTensor.

    Raises:
        InputError: the file is truncated or damaged, or holds more than tensors, or
            tensors that are not stored row by row.
    """
    path = Path(path)
    program, records = _open_pth(path)
    document = read_pickle(program, path)
    tensors = {}
    document = document if isinstance(document, dict) else {0: document}
    for name, view in document.items():
        if type(name) is not str or type(view) is not View:
            raise InputError(
                f"{path} holds a {type(view).__name__} at {shown(name)}: expected a "
                "state dict of tensors alone; get the original file."
            )
        storage = view.storage
        dtype = float_dtype(path, name, STORAGES, storage.kind)
        numbers = math.prod(view.shape)
        if numbers and not _row_by_row(view.shape, view.stride):
            raise InputError(
                f"{name} in {path} is not stored row by row: expected contiguous "
                "tensors; save it again after calling contiguous() on them."
            )
        begin, size = records.get(storage.key, (0, 0))
        beyond = view.offset + numbers > storage.length
        if numbers and (beyond or size != storage.length * dtype.itemsize):
            raise damaged_file(
                path, f"the numbers of {name} are not where they should be"
            )
        place = begin + view.offset * dtype.itemsize
        tensors[name] = StoredTensor(path, place, dtype, view.shape)
    return tensors


def _row_by_row(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether the numbers of a tensor follow each other; a side of 1 takes no step."""
    steps = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
    return all(n == 1 or have == want for n, have, want in zip(shape, stride, steps))


class _InParts:
    """A file of which nobody reads more than MOST_PICKLE bytes at once."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size if 0 <= size <= MOST_PICKLE else MOST_PICKLE + 1)
        if len(data) > MOST_PICKLE:
            raise ValueError("a part of it is too large")
        return data


# How the files begin that torch.save wrote before version 1.6: no zip archive.
BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


def _open_pth(path: Path) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """The pickle of a `.pth` file, and for each storage where it begins and its bytes.

    The file is a zip archive whose members are stored as they are, so nothing has to be
    unpacked, and nothing is.
    """
    with opened(path) as file:
        if file.read(len(BEFORE_ZIP)) == BEFORE_ZIP:
            raise InputError(
                f"{path} is a file of torch before 1.6: expected a zip archive, which "
                "torch.save has written since; load and save it with a newer torch."
            )
        try:
            members = _members(file)
            programs = [n for n in members if re.fullmatch("[^/]*/data.pkl", n)]
            if len(programs) != 1:
                raise ValueError(f"it has {len(programs)} members data.pkl")
            program = programs[0]
            root = program.removesuffix("data.pkl")
            texts = {}
            for name in (program, root + "byteorder"):
                if name in members:
                    begin, size = members[name]
                    file.seek(begin)
                    texts[name] = _InParts(file).read(size)
        except InputError:
            raise
        except Exception as error:  # a damaged zip file can raise anything
            raise damaged_file(path, f"no zip file of torch.save: {error}") from None
    order = texts.get(root + "byteorder", sys.byteorder.encode())
    if order != sys.byteorder.encode():
        raise damaged_file(path, f"its byte order is {shown(order)}")
    storages = {
        name.removeprefix(root + "data/"): place
        for name, place in members.items()
        if name.startswith(root + "data/")
    }
    return texts[program], storages


def _members(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """Members of a zip file: from names to the places of their bytes and their sizes.

    The directory's own words are not enough: a program that packs an archive anew may
    leave other room before a member, and other bytes would be read as weights.
    """
    members, size = {}, file.seek(0, io.SEEK_END)
    for member in zipfile.ZipFile(_InParts(file)).infolist():
        name, length = member.filename, member.file_size
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ValueError(f"{shown(name)} is compressed")
        if name in members:
            raise ValueError(f"{shown(name)} is there twice")
        file.seek(member.header_offset)
        header = file.read(30)
        begin = file.tell() + sum(struct.unpack_from("<HH", header, 26))
        if header[:4] != b"PK\3\4" or member.compress_size != length:
            raise ValueError(f"{shown(name)} has no header of its own")
        members[name] = begin, length
    end = 0
    for begin, length in sorted(members.values()):
        if begin < end or begin + length > size:
            raise ValueError("its members overlap or end behind it")
        end = begin + length
    return members
