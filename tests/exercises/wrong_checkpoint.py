"""Wrong answers to chapter 9's exercises."""

import json
import struct

import torch
from safetensors.torch import save

RIGHT = {
    "byte-of-a-number": 8 + 200 + 4 + 2 * (10 * 32 + 3),
    "perfect-shuffle": 7,
}
NAMES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
}


def written(tensors, start=0, length="<Q", numbers=None, shape=list):
    header, parts, place = {}, [], start
    for name, tensor in tensors.items():
        part = (numbers or numbers_of)(tensor)
        header[name] = {
            "dtype": NAMES[str(tensor.dtype)],
            "shape": shape(tensor.shape),
            "data_offsets": [place, place + len(part)],
        }
        parts.append(part)
        place += len(part)
    text = json.dumps(header).encode()
    return struct.pack(length, len(text)) + text + b"".join(parts)


def numbers_of(tensor):
    as_bytes = tensor.contiguous().view(-1)
    return as_bytes.view(torch.uint8).numpy().tobytes()


def highest_byte_first(tensors):
    return written(tensors, length=">Q")


def places_from_the_files_beginning(tensors):
    return written(tensors, start=100)


def memory_as_it_lies(tensors):  # of a transposed matrix, and of a slice
    def numbers(tensor):
        return bytes(tensor.untyped_storage())[: tensor.nbytes]

    return written(tensors, numbers=numbers)


def all_in_fp32(tensors):
    return written(tensors, numbers=lambda tensor: tensor.float().numpy().tobytes())


def four_bytes_of_length(tensors):
    return written(tensors, length="<I")


def a_number_is_a_list(tensors):
    return written(tensors, shape=lambda shape: list(shape) or [1])


def to_a_file(tensors):
    return len(save({name: t.contiguous() for name, t in tensors.items()}))


def always_half_split(weight, num_heads):
    return "half-split"


def pair_norms(weight, num_heads):
    norms = weight.unflatten(0, (num_heads, -1)).norm(dim=2).log()
    half = norms.shape[1] // 2
    apart = (norms[:, :half] - norms[:, half:]).abs().mean()
    beside = (norms[:, 0::2] - norms[:, 1::2]).abs().mean()
    return "half-split" if apart < beside else "meta"


def first_half_larger(weight, num_heads):
    norms = weight.unflatten(0, (num_heads, -1)).norm(dim=2)
    half = norms.shape[1] // 2
    return "meta" if norms[:, :half].sum() > norms[:, half:].sum() else "half-split"


def by_the_signs(weight, num_heads):
    rows = weight.unflatten(0, (num_heads, -1, 2))
    return "meta" if (rows[:, :, 0] * rows[:, :, 1]).sum() > 0 else "half-split"


WRONG = {
    "byte-of-a-number": [
        4 + 2 * (10 * 32 + 3),  # counted from the numbers
        200 + 4 + 2 * (10 * 32 + 3),  # the length left out
        8 + 200 + 2 * (10 * 32 + 3),  # the gate left out
        8 + 200 + 4 + 4 * (10 * 32 + 3),  # four bytes a number
        8 + 200 + 4 + 2 * (3 * 48 + 10),  # column by column
        8 + 200 + 4 + 2 * (9 * 32 + 2),  # rows and columns from 1
        8 + 200 + 4 + 10 * 32 + 3,  # one byte a number
        100_000,
    ],
    "perfect-shuffle": [1, 2, 6, 14, 64, 127, 0, 2.5],
    "write-safetensors": [
        highest_byte_first,
        places_from_the_files_beginning,
        memory_as_it_lies,
        all_in_fp32,
        four_bytes_of_length,
        a_number_is_a_list,
        to_a_file,
    ],
    "order-from-weights": [
        always_half_split,
        pair_norms,
        first_half_larger,
        by_the_signs,
    ],
}
