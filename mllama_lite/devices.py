# Generated from notebooks/09_checkpoint.ipynb and notebooks/10_inference.ipynb:
# edit there, or here and run `make update`.
"""Where to compute, in what precision, and how much memory is free there.

Built in chapters 9 and 10, notebooks/09_checkpoint.ipynb and 10_inference.ipynb.
"""

import os
import re
from pathlib import Path

import torch

from mllama_lite.errors import InputError


def free_memory(device):
    """Bytes that can still be taken on a device; None where the system doesn't tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        text = Path("/proc/meminfo").read_text()
        return int(re.search(r"MemAvailable:\s+(\d+) kB", text).group(1)) * 1024
    except (OSError, AttributeError):
        names = os.sysconf_names
        if device.type == "cpu" and "SC_AVPHYS_PAGES" in names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return None


def find_device(device):
    """torch device from its name; None for CUDA if there is one.

    Raises:
        InputError: there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()  # on the meta device there is no number
    except (RuntimeError, AssertionError, NotImplementedError):
        there = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise InputError(
            f"The device {str(device)!r} is not there: expected one of "
            f"{', '.join(there)}; choose another."
        ) from None
    return device


def find_dtype(dtype):
    """torch dtype from its name; None stays None.

    Raises:
        InputError: no floating-point dtype has that name.
    """
    known = {
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float32": torch.float32,
    }
    if dtype is None or dtype in known.values():
        return dtype
    if dtype not in known:
        raise InputError(
            f"The dtype {str(dtype)!r} is not known: expected one of "
            f"{', '.join(known)}; choose another."
        )
    return known[dtype]
