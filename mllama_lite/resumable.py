# Generated from notebooks/11_training.ipynb: edit there, or here and run `make update`.
"""A training that can stop anywhere and go on as if it had not.

Built in chapter 11, notebooks/11_training.ipynb. What it learns from, and how, is its
own; that its state is whole, in one file, and fits, is the same for all.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from mllama_lite.training_folder import (
    Unlike,
    check_alike,
    check_keys,
    check_optimiser,
    check_settings,
    load_state,
    save_state,
)


NOTE_EVERY = 50  # steps


class Resumable:
    """Modules in training, with everything that a later run needs to go on from here.

    Batches and the learning rate have to be functions of the settings and the step.

    Args:
        settings: dict as `as_stored` makes it; who changes one begins anew.
        steps: how many there are.
        modules: dict from a name to a Module.
        optimiser: AdamW over their parameters.
        num_sums: how many numbers are added up from one note to the next.

    Attributes:
        step: how many steps are done.
        history: list of dicts, one for every 50 steps.
        sums: fp32 [num_sums].
    """

    def __init__(
        self,
        settings: dict[str, Any],
        steps: int,
        modules: Mapping[str, nn.Module],
        optimiser: torch.optim.AdamW,
        num_sums: int,
    ) -> None:
        self.settings, self.steps, self.modules = settings, steps, dict(modules)
        self.optimiser = optimiser
        self.step = 0
        self.history: list[dict[str, Any]] = []
        device = next(next(iter(modules.values())).parameters()).device
        self.sums = torch.zeros(num_sums, device=device)

    def learn(self, loss: torch.Tensor, rate: float) -> None:
        """Go one step along the gradient of a loss, shortened to length 1."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        loss.backward()
        parameters = [
            p for module in self.modules.values() for p in module.parameters()
        ]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1

    def state(self) -> dict:
        """Everything that `load` needs to go on from here."""
        return {
            "plan": self.settings,
            "step": self.step,
            "history": self.history,
            "sums": self.sums,
            **{name: dict(m.state_dict()) for name, m in self.modules.items()},
            "optimiser": self.optimiser.state_dict(),
        }

    def save(self, path: Path) -> None:
        """Write the state to a file, see `save_state`."""
        save_state(path, self.state())

    def load(self, path: Path) -> None:
        """Go on from where `save` was called.

        Raises:
            InputError: it was called with other settings; see `load_state`.
        """
        state = load_state(path, self._check, self.sums.device)
        if state["step"] == 0:
            return  # it only says whose folder this is
        check_settings(path, state["plan"], self.settings)
        self.step, self.history = state["step"], state["history"]
        self.sums = state["sums"]
        for name, module in self.modules.items():
            module.load_state_dict(state[name])
        self.optimiser.load_state_dict(state["optimiser"])

    def _check(self, state: dict) -> None:
        """Whether a state is of this training's form; see `load_state`."""
        mine = self.state()
        free: dict[str, Any] = {"optimiser": {}, "history": [], "plan": {}}
        check_alike(state | free, mine | free)
        if state["plan"] != mine["plan"]:
            check_keys(state["plan"], mine["plan"], "the plan")
            return  # which `load` says in its own words
        if not 0 <= state["step"] <= self.steps:
            raise Unlike(f"step {state['step']} of {self.steps}")
        steps = [entry["step"] for entry in state["history"]]
        if steps != list(range(NOTE_EVERY, state["step"] + 1, NOTE_EVERY)):
            raise Unlike("its history has other steps")
        check_optimiser(state["optimiser"], self.optimiser, state["step"], every=False)


def decayed(parameters: Mapping[str, nn.Parameter]) -> list[dict[str, Any]]:
    """Groups for AdamW: only matrices decay.

    A gate or a norm that is pulled to 0 means something else, and the row of a token
    that did not occur has nothing to set against it.
    """
    decay: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        matrix = parameter.ndim > 1 and "embed" not in name
        (decay if matrix else rest).append(parameter)
    return [{"params": decay}, {"params": rest, "weight_decay": 0.0}]


@contextmanager
def quick_arithmetic(device: torch.device) -> Iterator[None]:
    """Within this block bf16 is used where it is fast, and attention that is fast backward."""
    # On a CPU the fused kernel's backward pass is slower than plain products.
    kernels = [SDPBackend.MATH]
    if device.type != "cpu":
        kernels += [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
    # A CPU whose library has no bf16 would multiply number by number.
    fast = device.type != "cpu" or (
        torch.backends.mkldnn.is_available()
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=fast),
        sdpa_kernel(kernels),
    ):
        yield
