"""Checks of chapter 9's exercises."""

import json
import struct
import tempfile
from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load

from exercises import exercise, expect
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.checkpoints.loading import load_model
from mllama_lite.checkpoints.tensor_files import read_safetensors_header
from mllama_lite.errors import InputError
from mllama_lite.rope import to_half_split, to_interleaved


@exercise("byte-of-a-number")
def byte_of_a_number(answer):
    header = {
        "gate": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "weight": {"dtype": "BF16", "shape": [48, 32], "data_offsets": [4, 3076]},
    }
    text = json.dumps(header).encode().ljust(200)
    numbers = range(48 * 32)  # each weight holds its own number as its two bytes
    file = struct.pack("<Q", 200) + text + bytes(4) + struct.pack("<1536H", *numbers)
    begin = len(file) - 2 * len(numbers)
    expect(answer == int(answer), "a byte has a whole number")
    expect(answer >= begin, "that is before the first number of weight")
    expect(answer < len(file), "that is behind the end of the file")
    expect((answer - begin) % 2 == 0, "that is the middle of a number")
    (found,) = struct.unpack_from("<H", file, int(answer))
    row, column = divmod(found, 32)
    said = f"there begins the number in row {row}, column {column}"
    expect((row, column) == (10, 3), said)


@exercise("perfect-shuffle")
def perfect_shuffle(answer):
    whole = answer == int(answer) and 1 <= answer <= 10_000
    expect(whole, "how often is a whole number, 1 or more")
    rows = torch.arange(128)[:, None]
    now = rows
    for times in range(1, int(answer) + 1):
        now = to_half_split(now, 1)
        back = torch.equal(now, rows)
        expect(not back or times == answer, "they were back before that")
    moved = int((now != rows).sum())
    expect(moved == 0, f"{moved} of 128 rows are not in their places then")


@exercise("write-safetensors")
def write_safetensors(to_bytes):
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(5, 4, generator=generator)
    contents = [
        {"weight": square, "gate": torch.tensor([0.5])},
        {
            "rounded": square.bfloat16(),
            "half": square.half(),
            "double": square.double(),
        },
        {"turned": square.T, "columns": square[:, 1:3], "rows": square[2:]},
        {"one": torch.tensor(1.5), 'a "name"': square[0], "größe": square[1]},
    ]
    for tensors in contents:
        names = ", ".join(tensors)
        file = to_bytes(dict(tensors))
        kind = type(file).__name__
        expect(isinstance(file, (bytes, bytearray)), f"it returns {kind}, no bytes")
        try:
            stored = load(bytes(file))
        except Exception as error:
            expect(False, f"with {names} the library says: {error}")
        expect(stored.keys() == tensors.keys(), f"with {names} it holds {list(stored)}")
        for name, tensor in tensors.items():
            found = stored[name]
            expect(
                found.dtype == tensor.dtype and found.shape == tensor.shape,
                f"{name} comes back as {found.dtype} {list(found.shape)}",
            )
            expect(torch.equal(found, tensor), f"{name} comes back with other numbers")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "written.safetensors"
            path.write_bytes(file)
            try:
                index = read_safetensors_header(path)
            except InputError as error:
                said = str(error).replace(f"{folder}/", "")
                expect(False, f"with {names} the package says: {said}")
            same = all(torch.equal(index[n].read(), t) for n, t in tensors.items())
            expect(same, f"with {names} the package reads other numbers")


@cache
def projections():
    """(weight, number of heads) of all queries and keys of the shipped model."""
    model, _ = load_model(find_folder(), dtype="float32")
    text = model.config.text
    found = []
    for index in text.self_attention_layers:
        attention = model.language_model.model.layers[index].self_attn
        found.append((attention.q_proj.weight.detach(), text.num_attention_heads))
        found.append((attention.k_proj.weight.detach(), text.num_key_value_heads))
    return found


@exercise("order-from-weights")
def order_from_weights(row_order):
    generator = torch.Generator().manual_seed(0)
    right = tried = 0
    for weight, heads in projections():
        width = weight.shape[1]
        turn, _ = torch.linalg.qr(torch.randn(width, width, generator=generator))
        weight = 3 * weight @ turn  # no stored matrix looks like this one
        for order, given in {
            "half-split": weight,
            "meta": to_interleaved(weight, heads),
        }.items():
            said = row_order(given.clone(), heads)
            expect(said in ("half-split", "meta"), f"it says {said!r} of a matrix")
            right, tried = right + (said == order), tried + 1
    expect(right >= tried - 1, f"of {tried} matrices it names {right} rightly")
