# Generated from notebooks/13_finetuning.ipynb: edit there, or here and run `make update`.
"""The processes that train together, and the numbers they train in.

Built in chapter 13, notebooks/13_finetuning.ipynb. One process needs nothing for it;
several are started by torchrun or accelerate, and meet through Accelerate.
"""

import os
import re

import torch

from mllama_lite.devices import find_device, find_dtype
from mllama_lite.errors import InputError, shown


class Processes:
    """The processes that train together: this one, or those that Accelerate started.

    Args:
        device: torch device or its name; None for CUDA if there is one.

    Attributes:
        count, rank: how many there are, and which of them this is.
        device: torch device of this one.

    Raises:
        InputError: several were started, and accelerate is not installed, or the
            environment does not say where they meet.
    """

    def __init__(self, device: str | torch.device | None = None) -> None:
        self.accelerator, self.count, self.rank = None, 1, 0
        if os.environ.get("WORLD_SIZE") in (None, "", "1"):
            self.device = find_device(device)
            return
        try:
            from accelerate import Accelerator
        except ImportError:
            raise InputError(
                "Several processes were started and accelerate is not installed: "
                "expected it for training on several devices; pip install accelerate."
            ) from None
        _check_environment()
        on_cpu = str(device) == "cpu" or not torch.cuda.is_available()
        try:
            self.accelerator = Accelerator(cpu=on_cpu)
        except (ValueError, RuntimeError, OSError) as error:
            raise InputError(
                f"The processes cannot meet ({type(error).__name__}): expected all of "
                "them at MASTER_ADDR and MASTER_PORT; start them with torchrun or "
                "accelerate launch."
            ) from None
        self.count = self.accelerator.num_processes
        self.rank = self.accelerator.process_index
        self.device = self.accelerator.device  # each has its own

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes."""
        if self.accelerator is None:
            return tensor
        return self.accelerator.reduce(tensor, "sum")


def _check_environment() -> None:
    """Whether everything is set that a process needs to find the others."""
    count = os.environ["WORLD_SIZE"]
    most: int | None = int(count) - 1 if re.fullmatch("[1-9][0-9]{0,5}", count) else 0
    limits = {"WORLD_SIZE": 10**6, "RANK": most, "LOCAL_RANK": most}
    for name, most in (limits | {"MASTER_PORT": 65535, "MASTER_ADDR": None}).items():
        value = os.environ.get(name)
        whole = value and re.fullmatch("[0-9]{1,6}", value)
        if not value or most is not None and not (whole and int(value) <= most):
            raise InputError(
                f"The environment has {name} {shown(value)} beside WORLD_SIZE "
                f"{shown(count)}: expected what a launcher sets; start the processes "
                "with torchrun or accelerate launch, or remove WORLD_SIZE."
            )


def training_dtype(
    device: torch.device, dtype: str | torch.dtype | None = None
) -> torch.dtype:
    """In what to train: bf16 where the device has it, else fp32.

    Args:
        device: torch device.
        dtype: what is asked for, see `find_dtype`; a CPU gets bf16 only if asked.

    Returns:
        torch dtype.

    Raises:
        InputError: fp16, whose range is too small for this model.
    """
    dtype = find_dtype(dtype)
    if dtype == torch.float16:
        raise InputError(
            "The dtype is float16: expected bfloat16 or float32 for training, as "
            "float16 overflows in this model; choose one of them."
        )
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = device.type == "cpu" and dtype is not None  # it can, but slowly
    return dtype or torch.bfloat16 if able else torch.float32
