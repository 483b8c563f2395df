"""Chapter 15: bugs of readers, and what notices them."""

import io
import pickle
import tempfile
import zipfile
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from bugs import a_bug, a_check, replaced
from mllama_lite.checkpoints import tensor_files
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.checkpoints.tensor_files import (
    StoredTensor,
    read_pickle,
    read_pth_index,
    read_safetensors_header,
)
from mllama_lite.errors import InputError
from mllama_lite.files import damaged_file

TENSORS = {
    "weight": torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
    "gate": torch.tensor([0.5]),
}


class Lenient(pickle.Unpickler):
    """Python's unpickler, which imports whatever belongs to torch."""

    def find_class(self, module, name):
        asked = f"{module} {name}"
        if asked == "collections OrderedDict":
            return OrderedDict
        if asked in tensor_files.STAND_INS:
            return tensor_files.STAND_INS[asked]
        if module == "torch" and name.endswith("Storage"):
            return tensor_files.Name(asked)
        if module.split(".")[0] == "torch":
            return super().find_class(module, name)
        raise InputError(f"{asked} is no name of torch's")

    def persistent_load(self, what):
        return tensor_files._storage(*what)


@a_bug(
    "every-name-of-torch-is-allowed",
    "A pickle may call whatever belongs to the package torch, not only the three functions "
    "that describe a tensor.",
    "tests/test_checkpoint.py::test_no_function_of_torch_is_called",
)
def every_name_of_torch_is_allowed():
    def wrong(program, path):
        try:
            return Lenient(io.BytesIO(program)).load()
        except InputError:
            raise
        except Exception as error:
            raise damaged_file(path, error) from None

    with replaced(read_pickle, wrong):
        yield


@a_bug(
    "places-from-the-alignment",
    "The numbers of a member of a .pth file are looked for at the next multiple of 64 "
    "bytes, where torch.save puts them, and not behind the member's own header.",
    "tests/test_hostile_files.py"
    "::test_an_archive_that_was_packed_anew_is_read_where_its_bytes_are",
)
def places_from_the_alignment():
    right = tensor_files._members

    def wrong(file):
        members = right(file)
        return {
            name: (-(-begin // 64) * 64 if "/data/" in name else begin, size)
            for name, (begin, size) in members.items()
        }

    with replaced(right, wrong):
        yield


@a_bug(
    "every-piece-from-the-start",
    "A tensor that is read in several pieces gets its first piece in all of them, since "
    "the place in the file is not moved on.",
    "tests/test_checkpoint.py::test_a_tensor_larger_than_the_buffer",
)
def every_piece_from_the_start():
    right = StoredTensor.read_into

    def wrong(self, destination):
        if not destination.is_contiguous():
            destination.copy_(self.read())
            return
        for piece in destination.view(-1).split(tensor_files.CHUNK):
            right(replace(self, shape=(len(piece),)), piece)

    with replaced(StoredTensor.read_into, wrong):
        yield


@a_check("an honest .safetensors file, beside its library")
def an_honest_safetensors_file():
    path = find_folder() / "model.safetensors"
    theirs, ours = load_file(path), read_safetensors_header(path)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(ours[name].read(), theirs[name]) for name in theirs)


def reads_as_written(path):
    index = read_pth_index(path)
    assert index.keys() == TENSORS.keys()
    assert all(torch.equal(index[name].read(), TENSORS[name]) for name in TENSORS)


@a_check("an honest .pth file")
def an_honest_pth_file():
    with tempfile.TemporaryDirectory() as folder:
        torch.save(TENSORS, Path(folder) / "tiny.pth")
        reads_as_written(Path(folder) / "tiny.pth")


class Calls:
    """An object whose pickle calls a function."""

    def __init__(self, function, *arguments):
        self.asked = function, arguments

    def __reduce__(self):
        return self.asked


def must_refuse(path):
    try:
        read_pth_index(path)
    except InputError:
        return
    raise AssertionError(f"{path} was read")


@a_check("a .pth file that calls print")
def a_file_that_calls_print():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "calls.pth"
        torch.save(TENSORS | {"more": Calls(print, "")}, path)
        must_refuse(path)


@a_check("a .pth file that calls torch.save")
def a_file_that_calls_torch():
    with tempfile.TemporaryDirectory() as folder:
        path, left = Path(folder) / "calls.pth", Path(folder) / "left"
        torch.save(TENSORS | {"more": Calls(torch.save, {}, str(left))}, path)
        try:
            read_pth_index(path)
        except InputError:
            pass
        assert not left.exists()


@a_check("a .pth file, packed anew by another program")
def packed_anew():
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "first.pth", Path(folder) / "second.pth"
        torch.save(TENSORS, first)
        with zipfile.ZipFile(first) as old, zipfile.ZipFile(second, "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
        reads_as_written(second)


@a_check("a tensor larger than the buffer")
def larger_than_the_buffer():
    numbers = torch.arange(10.0)
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(tensor_files, "CHUNK", 4),
    ):
        save_file({"numbers": numbers}, Path(folder) / "one.safetensors")
        stored = read_safetensors_header(Path(folder) / "one.safetensors")["numbers"]
        assert torch.equal(stored.read(), numbers)
