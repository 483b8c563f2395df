"""Files to model and back: the hub's layout and Meta's, read lazily and into place.

Built in chapter 9, notebooks/09_checkpoint.ipynb. Only the headers of the files are
read until every name and shape has been found right; then each tensor goes straight to
its parameter, so that little more than the model itself is ever in memory.
"""

import json
import math
import os
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mllama_lite.decoder import TextConfig
from mllama_lite.errors import InputError
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import MllamaConfig, config_from_hub, empty_model
from mllama_lite.rope import RopeScaling, to_half_split
from mllama_lite.tiles import canvases
from mllama_lite.tokenizer import NUM_SPECIAL_TOKENS


CHUNK = 1 << 24  # numbers that are converted at a time


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies in a file.

    Attributes:
        file: path.
        offset: of the first byte.
        dtype, shape: as stored, row-major.
    """

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def read_into(self, destination):
        """Copy the numbers into a tensor of the same shape, whatever dtype or device.

        A contiguous CPU tensor of the same dtype is filled by the file system itself;
        anything else goes through a buffer of at most CHUNK numbers.
        """
        if not destination.is_contiguous():
            destination.copy_(self.read())
            return
        direct = destination.device.type == "cpu" and destination.dtype == self.dtype
        flat = destination.view(-1)
        with open(self.file, "rb", buffering=0) as file:
            file.seek(self.offset)
            for part in flat.split(CHUNK):
                buffer = part if direct else torch.empty(len(part), dtype=self.dtype)
                bytes_wanted = memoryview(buffer.view(torch.uint8).numpy())
                while bytes_wanted:
                    count = file.readinto(bytes_wanted)
                    if not count:
                        raise _damaged(self.file, "it ended while it was being read")
                    bytes_wanted = bytes_wanted[count:]
                if not direct:
                    part.copy_(buffer)

    def read(self):
        """The tensor as it is stored, on the CPU."""
        result = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(result)
        return result


SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def read_safetensors_header(path):
    """Names and places of the tensors of a `.safetensors` file.

    The file begins with the length of the header, 8 bytes little-endian; then the
    header, JSON; then the numbers.

    Args:
        path: of the file.

    Returns:
        dict from name to StoredTensor.

    Raises:
        InputError: the file is truncated, damaged, or holds numbers that are no floats.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, "rb") as file:
        first = file.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else size
        if 8 + length > size:
            raise _damaged(path, f"its header does not fit into its {size} bytes")
        header = file.read(length)
    places = {}
    try:
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            dtype = SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"])
            # torch.Size takes whole numbers only.
            begin, end = torch.Size(entry["data_offsets"])
            places[name] = dtype, torch.Size(entry["shape"]), begin, end
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise _damaged(path, "its header is not what safetensors writes") from None
    tensors = {}
    for name, (dtype, shape, begin, end) in places.items():
        if not isinstance(dtype, torch.dtype):
            raise InputError(
                f"{name} in {path} has dtype {dtype}: expected one of "
                f"{', '.join(SAFETENSORS_DTYPES)}; quantised files do not load."
            )
        wanted = math.prod(shape) * dtype.itemsize
        if min((begin, *shape)) < 0 or end - begin != wanted:
            raise _damaged(path, f"{name} has {end - begin} bytes for {list(shape)}")
        if 8 + length + end > size:
            raise _damaged(path, f"{name} ends beyond its {size} bytes")
        tensors[name] = StoredTensor(path, 8 + length + begin, dtype, tuple(shape))
    return tensors


def read_pth_index(path):
    """Names and places of the tensors of a `.pth` file, without reading a number.

    torch's unpickler builds nothing but tensors here (`weights_only`), and inside
    FakeTensorMode these have no memory: only the place of their bytes in the file.

    Args:
        path: of the file.

    Returns:
        dict from name to StoredTensor.

    Raises:
        InputError: the file is truncated or damaged, or holds more than tensors.
    """
    path = Path(path)
    records = _zip_records(path)
    try:
        with FakeTensorMode():
            document = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} holds more than tensors, or is damaged: expected a state dict; it "
            "was not unpickled, because that could run any program; get the original "
            "file."
        ) from None
    except Exception:  # a damaged pickle can raise anything
        raise _damaged(path, "it is not what torch.save writes") from None
    tensors = {}
    document = document if isinstance(document, dict) else {0: document}
    for name, tensor in document.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(
                f"{path} holds a {type(tensor).__name__} at {name!r}: expected a state "
                "dict of tensors alone; get the original file."
            )
        if tensor.dtype not in SAFETENSORS_DTYPES.values():
            raise InputError(
                f"{name} in {path} has dtype {tensor.dtype}: expected one of "
                f"{', '.join(SAFETENSORS_DTYPES)}; quantised files do not load."
            )
        if tensor.layout != torch.strided or not tensor.is_contiguous():
            raise InputError(
                f"{name} in {path} is not stored row by row: expected contiguous "
                "tensors; save it again after calling contiguous() on them."
            )
        storage = tensor.untyped_storage()
        begin = getattr(storage, "_checkpoint_offset", None)
        last = tensor.storage_offset() * tensor.dtype.itemsize + tensor.nbytes
        if tensor.numel() and not last <= records.get(begin, -1):
            raise _damaged(path, f"the numbers of {name} are not where they should be")
        offset = (begin or 0) + last - tensor.nbytes
        tensors[name] = StoredTensor(path, offset, tensor.dtype, tuple(tensor.shape))
    return tensors


def _zip_records(path):
    """Where the members of a zip file begin that are not compressed, and their sizes.

    torch computes these places without looking. A file that another program has packed
    anew differs, and would yield wrong numbers.
    """
    records, order = {}, sys.byteorder
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            for member in archive.infolist():
                if member.compress_type == zipfile.ZIP_STORED:
                    file.seek(member.header_offset + 26)
                    lengths = struct.unpack("<HH", file.read(4))  # of name and extra
                    begin = member.header_offset + 30 + sum(lengths)
                    records[begin] = member.file_size
                if member.filename.endswith("/byteorder"):
                    order = archive.read(member).decode()
    except Exception:  # so can a damaged zip file
        raise _damaged(path, "it is not a complete zip file") from None
    if order != sys.byteorder:
        raise _damaged(path, f"its byte order is {order!r}")
    return records


def _damaged(path, what):
    return InputError(
        f"{path} is truncated or damaged ({what}): expected a complete file; download "
        "it again."
    )


def _read_json(path):
    """Parse a JSON file that has to be an object."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise _damaged(path, "it is not a JSON object") from None
    return document


def find_files(folder):
    """Which layout a folder has, and its files.

    Args:
        folder: path.

    Returns:
        ("hub", list of .safetensors) or ("meta", list of .pth).

    Raises:
        InputError: no such folder, no weights in it, or a shard is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(
            f"There is no folder {folder}: expected one with a model, or a hub id such "
            "as meta-llama/Llama-3.2-11B-Vision-Instruct; check the name."
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        places = _read_json(index).get("weight_map")
        names = list(places.values()) if isinstance(places, dict) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise _damaged(index, "it has no weight_map from tensors to files")
        names = sorted(set(names))
        for name in names:
            if not (folder / name).is_file():
                raise InputError(
                    f"{folder} lacks {name}, which its index names: expected "
                    f"{len(names)} shards; download the missing ones."
                )
        return "hub", [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return "hub", [folder / "model.safetensors"]
    files = sorted(file for file in folder.glob("consolidated*.pth") if file.is_file())
    if files:
        names = [file.name for file in files]
        numbered = [f"consolidated.{i:02}.pth" for i in range(len(files))]
        if names not in (["consolidated.pth"], numbered):
            raise InputError(
                f"{folder} has {', '.join(names)}: expected consolidated.pth, or "
                "consolidated.00.pth and so on; download what is missing."
            )
        return "meta", files
    raise InputError(
        f"{folder} has no weights: expected model.safetensors (or its index) or "
        "consolidated*.pth; point to the folder that holds them."
    )


def read_config(folder):
    """Configuration of a model's folder.

    Args:
        folder: with a `config.json` (hub) or else a `params.json` (Meta).

    Returns:
        MllamaConfig.

    Raises:
        InputError: neither file is there, or one that is of another architecture.
    """
    folder = Path(folder)
    for name, reader in {
        "config.json": config_from_hub,
        "params.json": config_from_meta,
    }.items():
        path = folder / name
        if path.is_file():
            document = _read_json(path)
            try:
                return reader(document, path)
            except (TypeError, AttributeError, ZeroDivisionError):
                raise _damaged(path, "an entry is not of the kind expected") from None
    if not folder.is_dir():
        find_files(folder)
    raise InputError(
        f"{folder} has no configuration: expected config.json (hub) or params.json "
        "(Meta); download it beside the weights."
    )


def config_from_meta(params, where="params.json"):
    """Read Meta's `params.json`. What it leaves out, Meta's code has as constants.

    Args:
        params: dict, the parsed file.
        where: what to call the file in an error.

    Returns:
        MllamaConfig.

    Raises:
        InputError: an entry is missing.

    Source: llama_models/llama3/args.py; multimodal/model.py, `FeedForward` (width) and
    `_init_fusion_schedule` (which layers).
    """
    params = params.get("model", params)
    side = params.get("vision_chunk_size", -1)
    try:
        width, heads, num_layers = params["dim"], params["n_heads"], params["n_layers"]
        multiple = params["multiple_of"]
        num_cross = params["vision_num_cross_attention_layers"] if side > 0 else 0
    except KeyError as error:
        raise InputError(
            f"{where} has no entry {error}: expected Meta's params.json of a Llama 3 "
            "model; download the file again."
        ) from None
    hidden = int((params.get("ffn_dim_multiplier") or 1.0) * int(8 * width / 3))
    cross = ()
    if num_cross > 0:
        # One cross layer before every `step`-th self layer, counted from the last.
        step = -(-num_layers // num_cross)
        before = list(range(num_layers))[::-1][::step][:num_cross][::-1]
        cross = tuple(i + already for already, i in enumerate(before))
    text = TextConfig(
        vocab_size=params.get("vocab_size", 128256),
        hidden_size=width,
        intermediate_size=-(-hidden // multiple) * multiple,
        num_hidden_layers=num_layers + len(cross),
        num_attention_heads=heads,
        num_key_value_heads=params.get("n_kv_heads") or heads,
        head_dim=width // heads,
        rms_norm_eps=params.get("norm_eps", 1e-5),
        rope_theta=float(params.get("rope_theta", 500000)),
        rope_scaling=RopeScaling() if params.get("use_scaled_rope") else None,
        cross_attention_layers=cross,
        num_extra_embeddings=8 if cross else 0,
    )
    vision = VisionConfig(image_size=side) if side > 0 else None
    return MllamaConfig(text, vision, image_token_index=text.vocab_size)


@dataclass
class Recipe:
    """How one parameter comes out of a checkpoint.

    Attributes:
        sources: list of (name in the checkpoint, shape there). Several are stacked
            along the rows of the parameter.
        convert: applied to what is stored; None if it is stored as it is needed.
    """

    sources: list[tuple[str, tuple[int, ...]]]
    convert: Callable | None = None


def hub_recipes(shapes, text_only):
    """Recipes for the hub's layout: the names are ours already.

    Args:
        shapes: dict from our parameter names to shapes.
        text_only: whether this is a `LlamaForCausalLM`.

    Returns:
        dict from our name to Recipe.
    """
    prefix = "language_model." if text_only else ""
    return {
        name: Recipe([(name.removeprefix(prefix), tuple(shape))])
        for name, shape in shapes.items()
    }


def old_hub_name(name):
    """Names that transformers has used in memory since 4.52, as the files have them."""
    name = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    name = re.sub(r"^model\.(vision_model|multi_modal_projector)\.", r"\1.", name)
    return re.sub(r"^lm_head\.", "language_model.lm_head.", name)


def meta_recipes(shapes, config):
    """Recipes for Meta's layout.

    Args:
        shapes: dict from our parameter names to shapes.
        config: MllamaConfig.

    Returns:
        dict from our name to Recipe.

    Source: llama_models/llama3/multimodal/model.py, names and shapes of its parameters.
    """
    text, vision = config.text, config.vision
    prefix = "text_model." if vision else ""
    recipes = {}
    for name, shape in shapes.items():
        shape = tuple(shape)
        if name.startswith("language_model.model.layers."):
            index, part = re.match(
                r"language_model\.model\.layers\.(\d+)\.(.*)", name
            ).groups()
            stack, place = _meta_layer(int(index), text)
            source, convert = f"{prefix}{stack}.{place}.{_meta_part(part)}", None
            heads = {
                "q_proj": text.num_attention_heads,
                "k_proj": text.num_key_value_heads,
            }
            if stack == "layers" and part.split(".")[1] in heads:
                num_heads = heads[part.split(".")[1]]
                convert = lambda weight, num_heads=num_heads: to_half_split(
                    weight, num_heads
                )
            recipes[name] = Recipe([(source, shape)], convert)
        elif name.endswith("embed_tokens.weight"):
            rows, width = shape
            sources = [(f"{prefix}tok_embeddings.weight", (text.vocab_size, width))]
            if rows > text.vocab_size:
                extra = (rows - text.vocab_size, width)
                sources.append((f"{prefix}learnable_embedding.weight", extra))
            recipes[name] = Recipe(sources)
        elif name.startswith("language_model."):
            part = {"lm_head": "output", "norm": "norm"}[name.split(".")[-2]]
            recipes[name] = Recipe([(f"{prefix}{part}.weight", shape)])
        elif name.startswith("multi_modal_projector."):
            recipes[name] = Recipe(
                [(f"vision_model.vision_projection.{name.split('.')[-1]}", shape)]
            )
        else:
            recipes[name] = _meta_vision_recipe(
                name.removeprefix("vision_model."), shape, vision
            )
    return recipes


def _meta_layer(index, text):
    """Meta counts self- and cross-attention layers apart: (stack, place in it)."""
    if index in text.cross_attention_layers:
        return "cross_attention_layers", text.cross_attention_layers.index(index)
    return "layers", text.self_attention_layers.index(index)


def _meta_part(part):
    """Meta's name of a part of a text layer."""
    for ours, theirs in (
        (r"^(?:self|cross)_attn\.([qkvo])_proj", r"attention.w\1"),
        (r"^cross_attn\.([qk])_norm", r"attention.\1_norm"),
        (r"^input_layernorm", "attention_norm"),
        (r"^post_attention_layernorm", "ffn_norm"),
        (r"^mlp\.gate_proj", "feed_forward.w1"),
        (r"^mlp\.down_proj", "feed_forward.w2"),
        (r"^mlp\.up_proj", "feed_forward.w3"),
        (r"^cross_attn_attn_gate", "gate_attn"),
        (r"^cross_attn_mlp_gate", "gate_ffwd"),
    ):
        part = re.sub(ours, theirs, part)
    return part


def _meta_vision_recipe(name, shape, vision):
    """Recipe of a parameter of the vision encoder."""
    tiles, convert = vision.max_num_tiles, None
    if name == "patch_embedding.weight":
        theirs, stored = (
            "conv1._linear.weight",
            (shape[0], shape[1] * shape[2] * shape[3]),
        )
        convert = lambda weight: weight.view(shape)
    elif name.endswith("tile_positional_embedding.embedding.weight"):
        theirs = name.split("_")[0] + "_tile_pos_embed.embedding"
        stored = (tiles, tiles, 1, vision.hidden_size)
        convert = lambda grid: tile_table(grid, tiles)
    elif name.endswith("tile_positional_embedding.gate"):
        theirs, stored = name.split("_")[0] + "_tile_pos_embed.gate", shape
    elif name == "gated_positional_embedding.tile_embedding.weight":
        theirs = "gated_positional_embedding"
        stored = (tiles, tiles, vision.num_patches, vision.hidden_size)
        convert = lambda grid: tile_table(grid, tiles)
    else:
        theirs, stored = name, shape
        for ours, meta in (
            (r"^gated_positional_embedding\.gate", "gated_positional_embedding_gate"),
            (r"^gated_positional_embedding\.embedding", "positional_embedding"),
            (r"^layernorm_(pre|post)", r"ln_\1"),
            (r"transformer\.layers", "transformer.resblocks"),
            (r"self_attn\.([qkvo])_proj", r"attn.w\1"),
            (r"mlp\.fc1", "mlp.c_fc"),
            (r"mlp\.fc2", "mlp.c_proj"),
            (r"\.input_layernorm", ".ln_1"),
            (r"\.post_attention_layernorm", ".ln_2"),
        ):
            theirs = re.sub(ours, meta, theirs)
    return Recipe([(f"vision_model.vision_encoder.{theirs}", stored)], convert)


def tile_table(grid, max_tiles):
    """Meta's vectors by (row, column) as the hub's table by aspect_ratio_id.

    Args:
        grid: [K, K, ...], the vectors of the tile in each row and column.
        max_tiles: K.

    Returns:
        [number of canvases + 1, K·(...)]: for each canvas its tiles' vectors row by
        row, then zeros; row 0 is zero.
    """
    arrangements = canvases(max_tiles)
    table = grid.new_zeros(len(arrangements) + 1, max_tiles, grid[0, 0].numel())
    for i, (rows, columns) in enumerate(arrangements, start=1):
        table[i, : rows * columns] = grid[:rows, :columns].reshape(rows * columns, -1)
    return table.flatten(1)


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

    def __str__(self):
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
    recipes: dict[str, Recipe]
    stored: dict[str, list[StoredTensor]]
    report: LoadReport


def open_checkpoint(folder):
    """Read configuration and headers of a folder and compare them with the model.

    Args:
        folder: path of a folder in the hub's layout or in Meta's.

    Returns:
        Checkpoint; `report` says what is missing or unexpected.

    Raises:
        InputError: see `find_files`, `read_config`, the readers of headers; a tensor
            with another shape than the configuration asks for.
    """
    folder = Path(folder)
    config = read_config(folder)
    layout, files = find_files(folder)
    model = empty_model(config)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    text_only = config.vision is None
    stored = {}
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
    recipes = (
        hub_recipes(shapes, text_only)
        if layout == "hub"
        else meta_recipes(shapes, config)
    )
    report = LoadReport(
        layout, num_parameters=sum(shape.numel() for shape in shapes.values())
    )
    wanted = set()
    for name, recipe in recipes.items():
        sources = [source for source, _ in recipe.sources]
        wanted.update(sources)
        if not all(source in stored for source in sources):
            report.missing.append(name)
            continue
        for source, shape in recipe.sources:
            _cut_dimension(stored[source], shape, source)
            report.stored_bytes += math.prod(shape) * stored[source][0].dtype.itemsize
        # The last parameter is the head, or the embedding where the two are tied.
        report.dtype = stored[sources[0]][0].dtype
        as_stored = recipe.convert is None and len(sources) == 1
        (report.loaded if as_stored else report.converted).append(name)
    # Some writers store a tied head and precomputed RoPE tables; both are known.
    known = wanted | {"lm_head.weight", "output.weight", "rope.freqs"}
    report.unexpected = [
        name
        for name in stored
        if name not in known and not name.endswith("rotary_emb.inv_freq")
    ]
    return Checkpoint(folder, config, recipes, stored, report)


def _cut_dimension(shards, shape, name):
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


def load_model(folder, device="cpu", dtype=None, progress=None):
    """Load a model from a folder in the hub's layout or in Meta's.

    Args:
        folder: path, or an opened Checkpoint.
        device: torch device or its name.
        dtype: torch dtype of the parameters; None for the one in which they are stored.
        progress: called with (bytes done, bytes in all) after every tensor, or None.

    Returns:
        (Mllama, LoadReport). The model is in evaluation mode.

    Raises:
        InputError: see `open_checkpoint`; tensors missing or unexpected; too little
            memory, said before anything is loaded.
    """
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
    dtype, device = dtype or report.dtype, torch.device(device)
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
            recipe = checkpoint.recipes[name]
            row = 0
            for source, shape in recipe.sources:
                rows = (
                    parameter[row : row + shape[0]]
                    if len(recipe.sources) > 1
                    else parameter
                )
                row += shape[0]
                stored = checkpoint.stored[source]
                _fill(rows, stored, shape, source, recipe.convert)
                done += math.prod(shape) * stored[0].dtype.itemsize
            if progress:
                progress(done, report.stored_bytes)
    return model.eval(), report


def _allocated(model, dtype, device):
    """Give the parameters of an empty model memory; nothing is written to it yet."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            memory = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(module, name, nn.Parameter(memory))
    model.language_model.tie_weights()
    return model


def _fill(parameter, shards, shape, name, convert):
    """Put a stored tensor, in one piece or several, into its parameter."""
    dimension = _cut_dimension(shards, shape, name)
    if dimension is None and convert is None:
        shards[0].read_into(parameter)
    elif convert is None:
        for shard, part in zip(shards, parameter.chunk(len(shards), dimension)):
            shard.read_into(part)
    else:
        parts = [
            shard.read() for shard in (shards if dimension is not None else shards[:1])
        ]
        whole = torch.cat(parts, dimension) if dimension is not None else parts[0]
        parameter.copy_(convert(whole))


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


def save_model(model, folder, max_shard_bytes=5 * 10**9):
    """Write a model in the hub's layout, which transformers reads as well.

    Args:
        model: Mllama.
        folder: path; made if it is not there. Files are written aside and renamed.
        max_shard_bytes: a file is begun anew when it would grow beyond this.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    text_only = model.config.vision is None
    tensors = {
        name.removeprefix("language_model.") if text_only else name: parameter.detach()
        for name, parameter in model.named_parameters()
    }
    shards, size = [{}], 0
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
    for name, shard in zip(names, shards):
        save_file(shard, folder / (name + ".part"), metadata={"format": "pt"})
    for name in names:
        os.replace(folder / (name + ".part"), folder / name)
    # An earlier model in one file, or the index of one in shards, would be read first.
    index_path = folder / "model.safetensors.index.json"
    stale = folder / "model.safetensors" if len(shards) > 1 else index_path
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
        _write_json(index, index_path)
    _write_json(config_to_hub(model.config, model.dtype), folder / "config.json")


HUB_FILES = [
    "config.json",
    "params.json",
    "tokenizer.json",
    "tokenizer.model",
    "original/tokenizer.model",
    "model*.safetensors",
    "model.safetensors.index.json",
]


def download(model_id):
    """Fetch a model from the hub, or find it where it was fetched to before.

    Args:
        model_id: "organisation/name".

    Returns:
        path of the folder.

    Raises:
        InputError: huggingface_hub is not installed; no such model; no access to it; no
            network.
    """
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise InputError(
            f"{model_id} is on the hub, and huggingface_hub is not installed: expected "
            "the extra for downloads; run pip install 'mllama-lite[hub]'."
        ) from None
    try:
        return Path(
            huggingface_hub.snapshot_download(model_id, allow_patterns=HUB_FILES)
        )
    except (errors.GatedRepoError, errors.RepositoryNotFoundError):
        raise InputError(
            f"The hub gives no access to {model_id}: expected a model that exists and "
            "whose licence you have accepted; accept it on the model's page and run hf "
            "auth login."
        ) from None
    except errors.HFValidationError:
        raise InputError(
            f"{model_id!r} is no hub id: expected organisation/name; correct it."
        ) from None
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError):
        raise InputError(
            f"The hub cannot be reached for {model_id}, and it was not downloaded "
            "before: expected a network connection; connect, or give the path of a "
            "folder."
        ) from None


def _write_json(document, path):
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    os.replace(part, path)


def config_to_hub(config, dtype):
    """The inverse of `config_from_hub`: a dict that transformers understands.

    Args:
        config: MllamaConfig.
        dtype: torch dtype of the parameters.

    Returns:
        dict for a `config.json`.
    """
    text, vision = config.text, config.vision
    entries = {
        name: getattr(text, name)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "rms_norm_eps",
            "rope_theta",
            "max_position_embeddings",
            "tie_word_embeddings",
        )
    }
    # The special tokens are the last of the vocabulary.
    first_special = text.vocab_size - NUM_SPECIAL_TOKENS
    entries |= {
        "hidden_act": "silu",
        "bos_token_id": max(first_special, 0),
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": first_special + 4 if first_special >= 0 else None,
    }
    entries["rope_scaling"] = None
    if text.rope_scaling:
        entries["rope_scaling"] = {"rope_type": "llama3"} | vars(text.rope_scaling)
    common = {"torch_dtype": str(dtype).removeprefix("torch.")}
    if vision is None:
        return (
            {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
            | entries
            | common
        )
    entries["model_type"] = "mllama_text_model"
    entries["cross_attention_layers"] = list(text.cross_attention_layers)
    pictures = dict(vars(vision))
    pictures["intermediate_layers_indices"] = list(vision.intermediate_layers_indices)
    pictures |= {
        "model_type": "mllama_vision_model",
        "hidden_act": "gelu",
        "vision_output_dim": vision.vision_output_dim,
        "supported_aspect_ratios": [
            list(canvas) for canvas in canvases(vision.max_num_tiles)
        ],
    }
    return {
        "architectures": ["MllamaForConditionalGeneration"],
        "model_type": "mllama",
        "image_token_index": config.image_token_index,
        "tie_word_embeddings": text.tie_word_embeddings,
        "text_config": entries,
        "vision_config": pictures,
    } | common
