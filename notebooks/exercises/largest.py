"""How large the tensors are that somebody's code makes; for checks of several chapters."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Largest(TorchDispatchMode):
    """While it is entered, remembers the largest tensor that any operation gave.

    Attributes:
        numel: its numbers.
    """

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if torch.is_tensor(result):
            self.numel = max(self.numel, result.numel())
        return result
