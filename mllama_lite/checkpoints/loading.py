# Generated from notebooks/09_checkpoint.ipynb: edit there, or here and run `make update`.
"""Files to model and back: the hub's layout and Meta's, read lazily and into place.

Built in chapter 9, notebooks/09_checkpoint.ipynb. Only the headers of the files are
read until every name and shape has been found right; then each tensor goes straight to
its parameter, so that little more than the model itself is ever in memory.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from mllama_lite.checkpoints.configs import config_to_hub
from mllama_lite.checkpoints.folders import INDEX, find_files, read_config, read_index
from mllama_lite.checkpoints.names import (
    Conversion,
    hub_conversions,
    meta_conversions,
    old_hub_name,
)
from mllama_lite.checkpoints.tensor_files import (
    StoredTensor,
    read_pth_index,
    read_safetensors_header,
)
from mllama_lite.devices import find_device, find_dtype, free_memory
from mllama_lite.errors import InputError
from mllama_lite.files import (
    as_path,
    damaged_file,
    exists,
    make_folder,
    system_errors,
    write_json,
    written_aside,
)
from mllama_lite.model import Mllama, MllamaConfig, empty_model


@dataclass
class LoadReport:
    """What became of the tensors of a checkpoint.

    Attributes:
        layout: "hub" or "meta".
        loaded: names of parameters filled as they were stored.
        converted: names of parameters that were rearranged on the way.
        missing: names that the model needs and the checkpoint lacks.
        unexpected: names that the checkpoint has and the model does not know.
        num_parameters: of the model.
        stored_bytes: of all tensors that are used.
        dtype: in which the head is stored.
    """

    layout: str
    loaded: list[str] = field(default_factory=list)
    converted: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    num_parameters: int = 0
    stored_bytes: int = 0
    dtype: torch.dtype | None = None

    def __str__(self) -> str:
        return (
            f"{self.layout} layout, {self.num_parameters:,} parameters, "
            f"{self.stored_bytes / 2**30:.2f} GiB: {len(self.loaded)} tensors loaded "
            f"as stored, {len(self.converted)} converted, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected"
        )


@dataclass
class Checkpoint:
    """A folder whose headers have been read: what is where, and nothing loaded yet."""

    folder: Path
    config: MllamaConfig
    conversions: dict[str, Conversion]
    stored: dict[str, list[StoredTensor]]
    report: LoadReport


def open_checkpoint(folder: Path | str) -> Checkpoint:
    """Read configuration and headers of a folder and compare them with the model.

    Args:
        folder: path of a folder in the hub's layout or in Meta's.

    Returns:
        Checkpoint; `report` says what is missing or unexpected.

    Raises:
        InputError: see `find_files`, `read_config`, the readers of headers; a tensor
            with another shape than the configuration asks for; an index that says
            otherwise than its files.
    """
    folder = as_path(folder, "a model's folder")
    config = read_config(folder)
    layout, files = find_files(folder)
    model = empty_model(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    text_only = config.vision is None
    stored: dict[str, list[StoredTensor]] = {}
    for file in files:
        index = (
            read_safetensors_header(file) if layout == "hub" else read_pth_index(file)
        )
        for name, tensor in index.items():
            if layout == "hub":
                name = name if text_only else old_hub_name(name)
                if name in stored:
                    raise InputError(
                        f"{name} is in {stored[name][0].file} and again in {file}: "
                        "expected each tensor once; download the model again."
                    )
            stored.setdefault(name, []).append(tensor)
    if layout == "hub" and exists(folder / INDEX):
        for name, place in read_index(folder).items():
            here = stored.get(name if text_only else old_hub_name(name), [])
            if [tensor.file.name for tensor in here] != [place]:
                raise damaged_file(folder / INDEX, f"{name} is not in {place}")
    conversions = (
        hub_conversions(shapes, text_only)
        if layout == "hub"
        else meta_conversions(shapes, config)
    )
    report = LoadReport(
        layout, num_parameters=sum(shape.numel() for shape in shapes.values())
    )
    wanted = set()
    for name, conversion in conversions.items():
        sources = [source for source, _ in conversion.sources]
        wanted.update(sources)
        if not all(source in stored for source in sources):
            report.missing.append(name)
            continue
        for source, shape in conversion.sources:
            _cut_dimension(stored[source], shape, source)
            report.stored_bytes += math.prod(shape) * stored[source][0].dtype.itemsize
        # The last parameter is the head, or the embedding where the two are tied.
        report.dtype = stored[sources[0]][0].dtype
        as_stored = conversion.convert is None and len(sources) == 1
        (report.loaded if as_stored else report.converted).append(name)
    # Some writers store a tied head and precomputed RoPE tables; both are known.
    known = wanted | {"lm_head.weight", "output.weight", "rope.freqs"}
    report.unexpected = [
        name
        for name in stored
        if name not in known and not name.endswith("rotary_emb.inv_freq")
    ]
    return Checkpoint(folder, config, conversions, stored, report)


def _cut_dimension(
    shards: list[StoredTensor], shape: tuple[int, ...], name: str
) -> int | None:
    """Along which dimension a tensor is cut into shards; None if it is whole.

    Meta's larger checkpoints are cut by model parallelism, a different dimension for
    different layers, and small tensors are repeated in every file. The shape that the
    model needs tells which.
    """
    first = shards[0].shape
    if all(shard.shape == first for shard in shards) and len(first) == len(shape):
        if first == shape:
            return None
        for dimension in range(len(shape)):
            whole = list(first)
            whole[dimension] *= len(shards)
            if tuple(whole) == shape and len(shards) > 1:
                return dimension
    more = f" and {len(shards) - 1} more files" if len(shards) > 1 else ""
    raise InputError(
        f"{name} in {shards[0].file}{more} has shape {list(first)}: expected "
        f"{list(shape)} from the configuration; use the configuration and all files "
        "that came with these weights."
    )


def load_model(
    folder: Path | str | Checkpoint,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[Mllama, LoadReport]:
    """Load a model from a folder in the hub's layout or in Meta's.

    Args:
        folder: path, or an opened Checkpoint.
        device: torch device or its name.
        dtype: torch dtype of the parameters or its name; None for the one in which they
            are stored.
        progress: called with (bytes done, bytes in all) after every tensor, or None.

    Returns:
        (Mllama, LoadReport). The model is in evaluation mode.

    Raises:
        InputError: see `open_checkpoint`, `find_device`, `find_dtype`; tensors missing
            or unexpected; too little memory, said before anything is loaded.
    """
    device, dtype = find_device(device), find_dtype(dtype)
    checkpoint = folder if isinstance(folder, Checkpoint) else open_checkpoint(folder)
    report = checkpoint.report
    for names, problem in (
        (report.missing, "lacks"),
        (report.unexpected, "has unknown"),
    ):
        if names:
            raise InputError(
                f"{checkpoint.folder} {problem} {len(names)} tensors, the first "
                f"{names[0]}: expected exactly those of its configuration; download "
                "the model again."
            )
    dtype = dtype or report.dtype or torch.float32
    needed = report.num_parameters * dtype.itemsize
    free = free_memory(device)
    if free is not None and needed > free:
        raise InputError(
            f"{checkpoint.folder} needs {needed / 2**30:.2f} GiB on {device} in "
            f"{dtype}, and {free / 2**30:.2f} GiB are free: expected enough for all "
            "parameters; free some, or choose a smaller dtype or another device."
        )
    model = _allocated(empty_model(checkpoint.config), dtype, device)
    done = 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            conversion = checkpoint.conversions[name]
            row = 0
            for source, shape in conversion.sources:
                rows = (
                    parameter[row : row + shape[0]]
                    if len(conversion.sources) > 1
                    else parameter
                )
                row += shape[0]
                stored = checkpoint.stored[source]
                _fill(rows, stored, shape, source, conversion.convert)
                done += math.prod(shape) * stored[0].dtype.itemsize
            if progress:
                progress(done, report.stored_bytes)
    return model.eval(), report


def _allocated(model: Mllama, dtype: torch.dtype, device: torch.device) -> Mllama:
    """Give the parameters of an empty model memory; nothing is written to it yet."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            memory = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(module, name, nn.Parameter(memory))
    model.language_model.tie_weights()
    return model


def _fill(
    parameter: torch.Tensor,
    shards: list[StoredTensor],
    shape: tuple[int, ...],
    name: str,
    convert: Callable | None,
) -> None:
    """Put a stored tensor, in one piece or several, into its parameter."""
    dimension = _cut_dimension(shards, shape, name)
    if dimension is None and convert is None:
        shards[0].read_into(parameter)
    elif convert is None:
        assert dimension is not None
        for shard, part in zip(shards, parameter.chunk(len(shards), dimension)):
            shard.read_into(part)
    else:
        parts = [
            shard.read() for shard in (shards if dimension is not None else shards[:1])
        ]
        whole = torch.cat(parts, dimension) if dimension is not None else parts[0]
        parameter.copy_(convert(whole))


def save_model(
    model: Mllama, folder: Path | str, max_shard_bytes: int = 5 * 10**9
) -> None:
    """Write a model in the hub's layout, which transformers reads as well.

    Args:
        model: Mllama.
        folder: path; made if it is not there. Files are written aside and renamed.
        max_shard_bytes: a file is begun anew when it would grow beyond this.

    Raises:
        InputError: the folder is a file; the system doesn't let it be written.
    """
    folder = make_folder(folder)
    text_only = model.config.vision is None
    tensors = {
        name.removeprefix("language_model.") if text_only else name: parameter.detach()
        for name, parameter in model.named_parameters()
    }
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.contiguous()
        size += tensor.nbytes
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [
            f"model-{i:05}-of-{len(shards):05}.safetensors"
            for i in range(1, len(shards) + 1)
        ]
    with ExitStack() as all_written:  # no file is renamed before the last is complete
        for name, shard in zip(names, shards):
            part = all_written.enter_context(written_aside(folder / name))
            save_file(shard, part, metadata={"format": "pt"})
    # An earlier model in one file, or the index of one in shards, would be read first.
    stale = folder / ("model.safetensors" if len(shards) > 1 else INDEX)
    with system_errors(stale, "written"):
        stale.unlink(missing_ok=True)
    if len(shards) > 1:
        index = {
            "metadata": {
                "total_size": sum(tensor.nbytes for tensor in tensors.values())
            },
            "weight_map": {
                key: name for name, shard in zip(names, shards) for key in shard
            },
        }
        write_json(index, folder / INDEX)
    write_json(config_to_hub(model.config, model.dtype), folder / "config.json")
