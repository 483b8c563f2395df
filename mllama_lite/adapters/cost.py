# Generated from notebooks/14_skill.ipynb: edit there, or here and run `make update`.
"""What fine-tuning costs in memory: a step is run on tensors without numbers.

Built in chapter 14, notebooks/14_skill.ipynb. The step is the trainer's own, and
what is counted are the bytes of all tensors that are alive at the same time. As nothing
is computed, a step of the 11B takes seconds.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from mllama_lite.adapters.data import Batch, Sample, make_batch
from mllama_lite.adapters.lora import add_adapter, base_parameters
from mllama_lite.adapters.processes import Processes
from mllama_lite.adapters.recipe import Recipe
from mllama_lite.adapters.training import Trainer, recomputed
from mllama_lite.errors import InputError
from mllama_lite.model import Mllama, MllamaConfig, empty_model
from mllama_lite.tiles import Tiles, canvases
from mllama_lite.vlm import VLM


class Ledger(TorchDispatchMode):
    """Within a `with` block: how many bytes the tensors hold that are alive.

    Tensors that share their numbers, as views do, are counted once. What a kernel needs
    while it runs is not seen. The idea is that of torch.distributed._tools.mem_tracker.

    Args:
        device: type of the device whose bytes are counted.

    Attributes:
        live, peak: bytes now, and the most so far.
    """

    def __init__(self, device: str = "cpu") -> None:
        super().__init__()
        self.device, self.live, self.peak = device, 0, 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function is torch.ops.prim.device.default:
            return args[0].fake_device  # asked for more often than anything is computed
        result = function(*args, **(kwargs or {}))
        self.add(x for x in tree_iter(result) if isinstance(x, torch.Tensor))
        return result

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors, also such as were there before the block."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            if key not in self._sizes and tensor.device.type == self.device:
                self._sizes[key] = size
                self.live += size
                weakref.finalize(storage, self._remove, key)
        self.peak = max(self.peak, self.live)

    def _remove(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


class ShapesAlone(TorchDispatchMode):
    """Within a `with` block large tensors have shape, dtype, device and no numbers.

    Small ones keep theirs: which tokens are answers, what sees which image. Kernels and
    autocast are chosen as for the device that the tensors claim to be on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self, function: Callable, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        unreal, aten = args and isinstance(args[0], FakeTensor), torch.ops.aten
        if unreal and function is aten._local_scalar_dense.default:
            return 1  # whoever asks for a number, such as the loss, is told 1
        mask = args[1][0] if unreal and function is aten.index.Tensor else None
        if mask is not None and mask.dtype == torch.bool:
            args = (args[0], list(mask.nonzero(as_tuple=True)))
        result = function(*args, **(kwargs or {}))
        return tree_map_only(torch.Tensor, self._forget, result)

    def _forget(self, tensor: torch.Tensor) -> torch.Tensor:
        if isinstance(tensor, FakeTensor) or tensor.numel() < 2**16:
            return tensor
        return self.fake.from_tensor(tensor)


def made_up(
    config: MllamaConfig, length: int, answers: int, tiles: Sequence[int]
) -> Sample:
    """Sample of a row of `Rehearsal`: images, then text that ends in the answer."""
    most = config.vision.max_num_tiles if config.vision else 0
    room = length - len(tiles)
    if not 0 < answers < room or not all(0 < n <= most for n in tiles):
        raise InputError(
            f"The row is {(length, answers, tiles)}: expected an answer, more tokens "
            f"than its and the images', and images of 1 to {most} tiles; change it."
        )
    tokens = [0] + [config.image_token_index] * len(tiles) + [0] * (room - 1)
    labels = [-100] * (length - 1 - answers) + [0] * answers + [-100]
    return Sample("made up", (), tokens, labels)


Row = tuple[int, int, Sequence[int]]  # tokens, answer tokens, tiles of each image


class Rehearsal(Trainer):
    """A Trainer of made-up samples: one step is one batch of all of them.

    Args:
        model: Mllama with an adapter that trains.
        rows: for each sample (tokens, answer tokens, tuple of tiles for each image);
            one that no sample can have raises InputError.
    """

    def __init__(self, model: Mllama, rows: Sequence[Row]) -> None:
        self.rows = rows
        samples = [made_up(model.config, *row) for row in rows]
        recipe = Recipe(steps=2, batch=len(samples))
        super().__init__(VLM(model), samples, [], recipe, Processes(model.device))

    def batches(self, samples: list[Sample]) -> Iterator[Batch]:
        """The batch; its tensors are made anew for every step, as real ones are."""
        config, vision = self.vlm.config, self.vlm.config.vision
        tokenizer: Any = SimpleNamespace(pad_id=0, image_id=config.image_token_index)
        batch = make_batch(self.samples, tokenizer, config)
        for images, (_, _, tiles) in zip(batch.images, self.rows):
            for n in tiles:
                assert vision is not None  # else `made_up` refused the row
                number = canvases(vision.max_num_tiles).index((1, n)) + 1
                shape = (vision.max_num_tiles, 3, vision.image_size, vision.image_size)
                images.append(Tiles(torch.ones(shape), number, (1, n)))
        yield batch


@dataclass(frozen=True)
class Cost:
    """Bytes at the moment of a training step in which most are in use.

    Attributes:
        weights: of the frozen model.
        adapter, gradients, optimiser: fp32; the last are AdamW's two averages.
        activations: all the rest: what is kept for the way back, what a layer needs for
            a moment, pixels, logits.
    """

    weights: int
    adapter: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        """The most that a step needs at a time."""
        return sum(astuple(self))


def training_cost(
    config: MllamaConfig,
    rows: Sequence[Row],
    targets: str | Sequence[str] = ("self", "mlp", "cross"),
    rank: int = 8,
    dtype: torch.dtype = torch.bfloat16,
    checkpointing: bool = False,
    device: str | torch.device = "cpu",
) -> Cost:
    """Count what a step of training an adapter needs, without computing it.

    Args:
        config: MllamaConfig, of any size.
        rows: the batch, see `Rehearsal`, which says what raises InputError.
        targets, rank: of the adapter, see `add_adapter`, which may raise it too.
        dtype: of the weights.
        checkpointing: see `recomputed`.
        device: whose kernels would run; this installation of torch must know it.

    Returns:
        Cost, in bytes.
    """
    shapes, model = ShapesAlone(), empty_model(config)
    like: dict[str, Any] = {"dtype": dtype, "device": device}
    with shapes.fake:
        state = {n: torch.empty(p.shape, **like) for n, p in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        model.language_model.tie_weights()
        adapter = add_adapter(model, targets, rank, report=None)
    trainer = Rehearsal(model, rows)
    with recomputed(model) if checkpointing else nullcontext(), shapes:
        peak = peak_of_step(trainer)
    weights = dtype.itemsize * sum(p.numel() for p in base_parameters(model))
    size = 4 * sum(p.numel() for p in adapter)
    return Cost(weights, size, size, 2 * size, peak - weights - 4 * size)


def peak_of_step(trainer: Trainer) -> int:
    """Most bytes alive in a step that has averages, as all but the first have."""
    with Ledger(trainer.model.device.type) as ledger:
        ledger.add(trainer.model.parameters())
        for parameter in trainer.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimiser.step()
        ledger.peak = ledger.live
        trainer.train_step()
    return ledger.peak
