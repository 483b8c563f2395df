# Generated from notebooks/09_checkpoint.ipynb and notebooks/10_inference.ipynb:
# edit there, or here and run `make update`.
"""Where to compute, in what precision, and how much memory is free there.

Built in chapters 9 and 10, notebooks/09_checkpoint.ipynb and 10_inference.ipynb.
"""

import os
import re
from pathlib import Path

import torch

from mllama_lite.errors import InputError, shown


def free_memory(device: torch.device | str) -> int | None:
    """Bytes that can still be taken on a device; None where the system doesn't tell."""
    device = find_device(device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        text = Path("/proc/meminfo").read_text()
        (kilobytes,) = re.findall(r"MemAvailable:\s+(\d+) kB", text)
        return int(kilobytes) * 1024
    except (OSError, ValueError):
        names = os.sysconf_names
        if device.type == "cpu" and "SC_AVPHYS_PAGES" in names:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return None


def find_device(device: torch.device | str | None) -> torch.device:
    """torch device from its name; None for CUDA if there is one.

    Raises:
        InputError: there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if not isinstance(device, (str, torch.device)):
            raise TypeError
        found = torch.device(device)
        torch.zeros(1, device=found).item()  # on the meta device there is no number
    except Exception:  # for what is not there, every kind of device has its own
        name = str(device) if isinstance(device, torch.device) else device
        there = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise InputError(
            f"The device {shown(name)} is not there: expected one of "
            f"{', '.join(there)}; choose another."
        ) from None
    return found


def find_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """torch dtype from its name; None stays None.

    Raises:
        InputError: no floating-point dtype has that name.
    """
    known = {
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float32": torch.float32,
    }
    if dtype is None or (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        return dtype
    if not isinstance(dtype, str) or dtype not in known:
        raise InputError(
            f"The dtype {shown(dtype)} is not known: expected one of "
            f"{', '.join(known)}; choose another."
        )
    return known[dtype]
