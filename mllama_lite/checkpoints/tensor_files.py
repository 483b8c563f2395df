# Generated from notebooks/09_checkpoint.ipynb: edit there, or here and run `make update`.
"""Where tensors lie in files: safetensors and `.pth`, read a tensor at a time.

Built in chapter 9, notebooks/09_checkpoint.ipynb. Reading a file's index reads no
numbers; `StoredTensor.read_into` then puts them straight where they belong.
"""

import json
import math
import pickle
import struct
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from mllama_lite.errors import InputError
from mllama_lite.files import damaged_file


CHUNK = 1 << 24  # numbers that are converted at a time


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

    def read_into(self, destination):
        """Copy the numbers into a tensor of the same shape, whatever dtype or device.

        A contiguous CPU tensor of the same dtype is filled by the file system itself;
        anything else goes through a buffer of at most CHUNK numbers.
        """
        if not destination.is_contiguous():
            destination.copy_(self.read())
            return
        direct = destination.device.type == "cpu" and destination.dtype == self.dtype
        flat = destination.view(-1)
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.offset)
            for part in flat.split(CHUNK):
                buffer = part if direct else torch.empty(len(part), dtype=self.dtype)
                bytes_wanted = memoryview(buffer.view(torch.uint8).numpy())
                while bytes_wanted:
                    count = file.readinto(bytes_wanted)
                    if not count:
                        raise damaged_file(
                            self.file, "it ended while it was being read"
                        )
                    bytes_wanted = bytes_wanted[count:]
                if not direct:
                    part.copy_(buffer)

    def read(self):
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


def read_safetensors_header(path):
    """Names and places of the tensors of a `.safetensors` file.

    The file begins with the length of the header, 8 bytes little-endian; then the
    header, JSON; then the numbers.

    Args:
        path: of the file.

    Returns:
        dict from name to StoredTensor.

    Raises:
        InputError: the file is truncated, damaged, or holds numbers that are no floats.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if 8 + length > size:
            raise damaged_file(path, f"its header does not fit into its {size} bytes")
        header = file.read(length)
    places = {}
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            dtype = SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"])
            # torch.Size takes whole numbers only.
            begin, end = torch.Size(entry["data_offsets"])
            places[name] = dtype, torch.Size(entry["shape"]), begin, end
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise damaged_file(path, "its header is not what safetensors writes") from None
    tensors = {}
    for name, (dtype, shape, begin, end) in places.items():
        if not isinstance(dtype, torch.dtype):
            raise InputError(
                f"{name} in {path} has dtype {dtype}: expected one of "
                f"{', '.join(SAFETENSORS_DTYPES)}; quantised files do not load."
            )
        wanted = math.prod(shape) * dtype.itemsize
        if min((begin, *shape)) < 0 or end - begin != wanted:
            raise damaged_file(
                path, f"{name} has {end - begin} bytes for {list(shape)}"
            )
        if 8 + length + end > size:
            raise damaged_file(path, f"{name} ends beyond its {size} bytes")
        tensors[name] = StoredTensor(path, 8 + length + begin, dtype, tuple(shape))
    return tensors


def read_pth_index(path):
    """Names and places of the tensors of a `.pth` file, without reading a number.

    torch's unpickler builds nothing but tensors here (`weights_only`), and inside
    FakeTensorMode these have no memory: only the place of their bytes in the file.

    Args:
        path: of the file.

    Returns:
        dict from name to StoredTensor.

    Raises:
        InputError: the file is truncated or damaged, or holds more than tensors.
    """
    path = Path(path)
    records = _zip_records(path)
    try:
        with FakeTensorMode():
            document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds more than tensors, or is damaged: expected a state dict; it "
            "was not unpickled, because that could run any program; get the original "
            "file."
        ) from None
    except Exception:  # a damaged pickle can raise anything
        raise damaged_file(path, "it is not what torch.save writes") from None
    tensors = {}
    document = document if isinstance(document, dict) else {0: document}
    for name, tensor in document.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"{path} holds a {type(tensor).__name__} at {name!r}: expected a state "
                "dict of tensors alone; get the original file."
            )
        if tensor.dtype not in SAFETENSORS_DTYPES.values():
            raise InputError(
                f"{name} in {path} has dtype {tensor.dtype}: expected one of "
                f"{', '.join(SAFETENSORS_DTYPES)}; quantised files do not load."
            )
        if tensor.layout != torch.strided or not tensor.is_contiguous():
            raise InputError(
                f"{name} in {path} is not stored row by row: expected contiguous "
                "tensors; save it again after calling contiguous() on them."
            )
        storage = tensor.untyped_storage()
        begin = getattr(storage, "_checkpoint_offset", None)
        last = tensor.storage_offset() * tensor.dtype.itemsize + tensor.nbytes
        if tensor.numel() and not last <= records.get(begin, -1):
            raise damaged_file(
                path, f"the numbers of {name} are not where they should be"
            )
        offset = (begin or 0) + last - tensor.nbytes
        tensors[name] = StoredTensor(path, offset, tensor.dtype, tuple(tensor.shape))
    return tensors


def _zip_records(path):
    """Where the members of a zip file begin that are not compressed, and their sizes.

    torch computes these places without looking. A file that another program has packed
    anew differs, and would yield wrong numbers.
    """
    records, order = {}, sys.byteorder
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for member in archive.infolist():
                if member.compress_type == zipfile.ZIP_STORED:
                    file.seek(member.header_offset + 26)
                    lengths = struct.unpack("<HH", file.read(4))  # of name and extra
                    begin = member.header_offset + 30 + sum(lengths)
                    records[begin] = member.file_size
                if member.filename.endswith("/byteorder"):
                    order = archive.read(member).decode()
    except Exception:  # so can a damaged zip file
        raise damaged_file(path, "it is not a complete zip file") from None
    if order != sys.byteorder:
        raise damaged_file(path, f"its byte order is {order!r}")
    return records
