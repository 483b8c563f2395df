"""Throw damaged files at everything that reads a stranger's file.

    python tools/fuzz.py                    every target in turn, 10,000,000 inputs in all
    python tools/fuzz.py --runs 100000 pickle safetensors
    python tools/fuzz.py --draw 300         300 of each target, without atheris
    python tools/fuzz.py --list

A target takes bytes, gives them to a reader, and is content with an answer or an InputError.
Everything else is a finding, as are more than 20 seconds and too much memory (3 GiB with atheris,
2 GiB more than at the start without). Its input is kept in tests/corpus/TARGET, where `make test`
reads it again from then on.

atheris (`pip install atheris`; `make fuzz` does it) guides the inputs by the lines of code that
they reach. With --draw they are drawn at random from the same mutations instead, always the same
ones for a seed, in one process: that is what tests/test_fuzz.py does. `make fuzz` records what
atheris counted in tests/fuzz.json, from which the page "What is proven" has its table.
"""

import argparse
import io
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, features
from safetensors.torch import save as safetensors_bytes

from mllama_lite.adapters.data import Reader
from mllama_lite.adapters.lora import add_adapter, remove_adapters
from mllama_lite.adapters.peft_files import load_adapter, save_adapter
from mllama_lite.checkpoints.configs import config_to_hub
from mllama_lite.checkpoints.folders import find_files, read_config
from mllama_lite.checkpoints.hub import find_folder, find_tokenizer
from mllama_lite.checkpoints.processor_files import hub_tokenizer
from mllama_lite.checkpoints.tensor_files import (
    read_pth_index,
    read_safetensors_header,
)
from mllama_lite.decoder import TextConfig
from mllama_lite.errors import InputError
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import Mllama, MllamaConfig, empty_model
from mllama_lite.tiles import open_image
from mllama_lite.tokenizer import (
    read_tokenizer_json,
    read_tokenizer_model,
    train_bpe,
    write_tokenizer_model,
)

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "tests" / "corpus"
MEMORY = 2 * 2**30  # bytes
SECONDS = 20

# Small enough to be read thousands of times a second.
CONFIG = MllamaConfig(
    TextConfig(
        vocab_size=520,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        cross_attention_layers=(1,),
        max_position_embeddings=64,
    ),
    VisionConfig(
        hidden_size=16,
        attention_heads=2,
        intermediate_size=32,
        num_hidden_layers=2,
        num_global_layers=1,
        image_size=28,
        intermediate_layers_indices=(0, 1),
    ),
    520,
)
PARAMS = {
    "dim": 4096,
    "n_layers": 32,
    "n_heads": 32,
    "n_kv_heads": 8,
    "vocab_size": 128256,
    "ffn_dim_multiplier": 1.3,
    "multiple_of": 1024,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "use_scaled_rope": True,
    "vision_chunk_size": 560,
    "vision_max_num_chunks": 4,
    "vision_num_cross_attention_layers": 8,
}


@dataclass(frozen=True)
class Target:
    """A reader under test.

    Attributes:
        read: called with bytes; an InputError is an answer.
        seeds: what good input looks like.
        mutate: called with (random.Random, bytes) for bytes that are nearly as good.
        share: of all inputs, when every target is run.
    """

    read: Callable[[bytes], object]
    seeds: list[bytes]
    mutate: Callable[[random.Random, bytes], bytes]
    share: int = 1


# Mutations: of bytes, of JSON, and of formats that wrap one in the other.

NASTY = [
    None, True, False, 0, -1, 1, 2, 3, 1.5, -0.0, 1e-300, 1e308, float("nan"),
    float("inf"), -float("inf"), 2**31, 2**63, 10**18, 10**400, "", "a", "..", "../x",
    "/etc/passwd", "\x00", "\x1b[2J\n", "(.*)*$x", "(", "NaN", "x" * 5000, [], [[]],
    [0], [None], [2**63], {}, {"": 0}, {"a": {"b": []}},
]  # fmt: skip
BYTES = [b"\x00", b"\xff", b"\x7f", b"\x80", b"{", b"}", b"[", b'"', b"\n", b"0", b"-"]


def mutate_bytes(rng: random.Random, data: bytes) -> bytes:
    """A few bytes changed, put in, taken out, doubled or cut off."""
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64)))
        kind = rng.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at:end] = rng.choice(BYTES) * rng.choice((1, 1, 4))
        elif kind == 2:
            del data[at:end]
        elif kind == 3:
            data[at:at] = data[at:end]
        elif kind == 4:
            data[at:end] = rng.randbytes(end - at)
        elif rng.random() < 0.2:
            del data[at:]
    return bytes(data)


def mutate_value(rng: random.Random, value: object) -> object:
    """A JSON value with something in it that does not belong there."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        changed = dict(value)
        match rng.randrange(8):
            case 0:
                del changed[key]
            case 1:
                changed[rng.choice((key + "x", "", *list(value)))] = changed.pop(key)
            case _:
                changed[key] = mutate_value(rng, value[key])
        return changed
    if isinstance(value, list) and value and rng.random() < 0.8:
        changed, at = list(value), rng.randrange(len(value))
        match rng.randrange(5):
            case 0:
                del changed[at]
            case 1:
                changed += value
            case _:
                changed[at] = mutate_value(rng, value[at])
        return changed
    if isinstance(value, (int, float)) and rng.random() < 0.3:
        return rng.choice((value + 1, value - 1, value * 2, -value, str(value)))
    if isinstance(value, str) and rng.random() < 0.3:
        return mutate_bytes(rng, value.encode()).decode("utf-8", "replace")
    return rng.choice(NASTY)


def mutate_json(rng: random.Random, data: bytes) -> bytes:
    """Mostly still JSON, with a wrong value; sometimes not even that."""
    if rng.random() < 0.15:
        return mutate_bytes(rng, data)
    try:
        document = json.loads(data)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            document = mutate_value(rng, document)
        return json.dumps(document).encode()
    except (ValueError, RecursionError, OverflowError):
        return mutate_bytes(rng, data)


def mutate_lines(rng: random.Random, data: bytes) -> bytes:
    """One line of several changed as JSON."""
    lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    lines[at] = mutate_json(rng, lines[at])
    return b"\n".join(lines)


def mutate_safetensors(rng: random.Random, data: bytes) -> bytes:
    """The header changed as JSON, with its length put right; or bytes anywhere."""
    if len(data) < 8 or rng.random() < 0.2:
        return mutate_bytes(rng, data)
    length = struct.unpack("<Q", data[:8])[0]
    header = mutate_json(rng, data[8 : 8 + length])
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


# Where the bytes go: a folder in memory, if the system has one.

_shm = "/dev/shm" if os.path.isdir("/dev/shm") else None
_shm = os.environ.get("FUZZ_FOLDER", _shm)  # of the process that started this one
_holder = tempfile.TemporaryDirectory(prefix="fuzz-", dir=_shm)
FOLDER = Path(_holder.name)


def in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """A target's `read` that puts the bytes into a file of that name first."""
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)

    def run(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return run


def zipped(data: bytes) -> bytes:
    """A `.pth` whose data.pkl is these bytes, with storages for two tensors."""
    with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", b"little")
        for i, size in enumerate((48, 8)):  # as `pth_bytes` has them
            archive.writestr(f"archive/data/{i}", bytes(size))
        archive.writestr("archive/version", b"3\n")
    return file.getvalue()


def pth_bytes() -> bytes:
    tensors = {
        "a.weight": torch.arange(12.0).view(3, 4),
        "b.weight": torch.ones(4, dtype=torch.bfloat16),
    }
    torch.save(tensors, file := io.BytesIO())
    return file.getvalue()


def picture_bytes() -> list[bytes]:
    """A small picture in every format that is read."""
    picture, found = Image.effect_noise((9, 7), 60).convert("RGB"), []
    kinds = {"PNG": {}, "JPEG": {}, "WEBP": {}, "GIF": {}, "BMP": {}, "TIFF": {}}
    if features.check("avif"):
        kinds["AVIF"] = {}
    kinds["TIFF"] = {"compression": "tiff_lzw"}
    for kind, options in kinds.items():
        picture.save(file := io.BytesIO(), kind, **options)
        found.append(file.getvalue())
    for mode in ("1", "L", "P", "I;16", "RGBA"):
        picture.convert("L" if mode == "I;16" else mode).convert(mode).save(
            file := io.BytesIO(), "PNG"
        )
        found.append(file.getvalue())
    return found


def adapter_target() -> tuple[Target, Target]:
    """The two files of an adapter, read into a model that must be as it was if refused."""
    model, folder = Mllama(CONFIG).eval(), FOLDER / "adapter"
    add_adapter(model, rank=2, report=None)
    save_adapter(model, folder)
    remove_adapters(model)
    names = [name for name, _ in model.named_modules()]
    good = {p.name: p.read_bytes() for p in folder.iterdir()}

    def read(name: str) -> Callable[[bytes], None]:
        def run(data: bytes) -> None:
            for file, content in (good | {name: data}).items():
                (folder / file).write_bytes(content)
            try:
                load_adapter(model, folder)
                remove_adapters(model)
            except InputError:
                left = [module for module, _ in model.named_modules()]
                assert left == names, "half an adapter stayed in the model"

        return run

    config, tensors = "adapter_config.json", "adapter_model.safetensors"
    return (
        Target(read(config), [good[config]], mutate_json),
        Target(read(tensors), [good[tensors]], mutate_safetensors),
    )


def targets() -> dict[str, Target]:
    """Every reader of a stranger's file, by name."""
    hub = json.dumps(config_to_hub(CONFIG, torch.bfloat16)).encode()
    shipped = (find_folder() / "config.json").read_bytes()
    text = config_to_hub(
        MllamaConfig(
            TextConfig(cross_attention_layers=(), num_extra_embeddings=0), None
        ),
        torch.bfloat16,
    )
    ranks = train_bpe([b"a stranger's file", b"a damaged file"] * 3, 270)
    write_tokenizer_model(ranks, FOLDER / "good.model")
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    (FOLDER / "sharded").mkdir(exist_ok=True)
    for name in shards:
        (FOLDER / "sharded" / name).write_bytes(b"")
    index = {"metadata": {"total_size": 8}, "weight_map": dict(zip("ab", shards))}
    some = {"a.weight": torch.zeros(2, 3), "b.weight": torch.zeros(4).bfloat16()}
    pth = pth_bytes()
    with zipfile.ZipFile(io.BytesIO(pth)) as archive:
        name = next(n for n in archive.namelist() if n.endswith("data.pkl"))
        pickled = archive.read(name)
    tokenizer = find_tokenizer(find_folder())
    picture = FOLDER / "data" / "one.png"
    picture.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(picture)
    lines = [
        {"file_name": "one.png", "question": "What is it?", "answer": "paper"},
        {"file_names": ["one.png", "one.png"], "question": "Same?", "answer": "yes"},
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
            ]
        },
    ]
    samples = "\n".join(map(json.dumps, lines)).encode()
    adapter_config, adapter_tensors = adapter_target()

    def read_samples(path: Path) -> object:
        return Reader(tokenizer, CONFIG).read(path, path.name)

    def configured(path: Path) -> None:
        """What a configuration says has to be possible: some are built."""
        config = read_config(path.parent)
        layers = config.text.num_hidden_layers
        if layers < 5 and zlib.crc32(path.read_bytes()) % 16 == 0:
            empty_model(config)

    read_hub = in_file("hub/config.json", configured)
    read_meta = in_file("meta/params.json", configured)
    read_index = in_file(
        "sharded/model.safetensors.index.json", lambda path: find_files(path.parent)
    )
    read_tensors = in_file("one.safetensors", read_safetensors_header)
    read_pth = in_file("one.pth", read_pth_index)
    return {
        "config": Target(
            read_hub, [hub, shipped, json.dumps(text).encode()], mutate_json, 32
        ),
        "params": Target(read_meta, [json.dumps(PARAMS).encode()], mutate_json, 32),
        "index": Target(read_index, [json.dumps(index).encode()], mutate_json, 32),
        "safetensors": Target(
            read_tensors, [safetensors_bytes(some)], mutate_safetensors, 40
        ),
        "pth": Target(read_pth, [pth], mutate_bytes, 24),
        "pickle": Target(
            lambda data: read_pth(zipped(data)), [pickled], mutate_bytes, 24
        ),
        "tokenizer_model": Target(
            in_file("tokenizer.model", read_tokenizer_model),
            [(FOLDER / "good.model").read_bytes()],
            mutate_bytes,
            16,
        ),
        "tokenizer_json": Target(
            in_file("tokenizer.json", read_tokenizer_json),
            [json.dumps(hub_tokenizer(ranks)).encode()],
            mutate_json,
            16,
        ),
        "adapter_config": adapter_config,
        "adapter_tensors": adapter_tensors,
        "samples": Target(
            in_file("data/metadata.jsonl", read_samples), [samples], mutate_lines, 6
        ),
        "picture": Target(
            lambda data: open_image(data), picture_bytes(), mutate_bytes, 16
        ),
    }


def kept(name: str) -> list[bytes]:
    """Inputs of a target that were findings once, or that reach where others don't."""
    return [p.read_bytes() for p in sorted((CORPUS / name).glob("*")) if p.is_file()]


def check(name: str, target: Target, data: bytes) -> None:
    """Give bytes to a reader; whatever is no answer is kept, and raised again."""
    try:
        target.read(data)
    except InputError as error:
        text = str(error)
        assert text.isprintable() or "\n  " in text, "a sentence that is not printable"
    except BaseException:
        keep(name, data)
        raise


def keep(name: str, data: bytes) -> Path:
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{random.Random(data).getrandbits(64):016x}"
    path.write_bytes(data)
    return path


def drawn(target: Target, more: list[bytes], count: int, seed: int = 0):
    """Good inputs, kept ones, and `count` mutations of them, the same for each seed."""
    rng, pool = random.Random(seed), [*target.seeds, *more]
    yield from pool
    for _ in range(count):
        data = rng.choice(pool)
        for _ in range(rng.choice((1, 1, 2, 3))):
            data = target.mutate(rng, data)
        yield data


def limited(bytes_more: int = MEMORY) -> None:
    """From here on this process may take only so much more memory."""
    import resource

    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + bytes_more, size + bytes_more))


def draw(names: list[str], count: int, seed: int) -> int:
    """Targets with inputs drawn at random, in this process; returns the exit code."""
    every = targets()
    limited()

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, too_long)
    for name in names or every:
        done = 0
        for data in drawn(every[name], kept(name), count, seed):
            signal.alarm(SECONDS)
            check(name, every[name], data)
            signal.alarm(0)
            done += 1
        print(f"{name:16} {done:>11,} inputs, nothing found", flush=True)
    return 0


def guided(name: str, runs: int, seed: int) -> None:
    """Let atheris find its way through the package's own lines. Does not return."""
    import atheris

    target = targets()[name]
    folder = FOLDER / "guided"
    folder.mkdir()
    for i, data in enumerate([*target.seeds, *kept(name)]):
        (folder / f"seed{i}").write_bytes(data)
    modules = [m for n, m in sys.modules.items() if n.startswith("mllama_lite.")]
    for module in modules:
        for value in vars(module).values():
            if getattr(value, "__module__", None) == module.__name__:
                if callable(value) and hasattr(value, "__code__"):
                    atheris.instrument_func(value)

    def one(data: bytes) -> None:
        check(name, target, data)

    def mutator(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)
        # atheris forgets a seed that reaches no new line, as most formats of pictures do:
        # their decoders are not lines of this package.
        if not data or rng.random() < 0.3:
            data = rng.choice(target.seeds)
        if rng.random() < 0.3:
            return atheris.Mutate(data, max_size)
        return target.mutate(rng, data)[:max_size]

    longest = 4 * max(map(len, target.seeds)) + 4096
    options = [f"-runs={runs}", f"-timeout={SECONDS}", f"-seed={seed}"]
    options += ["-rss_limit_mb=3072", f"-max_len={longest}", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, str(folder)], one, custom_mutator=mutator)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("targets", nargs="*", help="default: all")
    parser.add_argument("--runs", type=int, default=10_000_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--draw", type=int, metavar="N", help="N of each, unguided")
    parser.add_argument(
        "--record", type=Path, metavar="FILE", help="write the figures there, as JSON"
    )
    parser.add_argument("--list", action="store_true", help="name the targets")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow's, about damaged pictures
    if options.one:
        guided(options.one, options.runs, options.seed)
    every = targets()
    if options.list:
        print(*every, sep="\n")
        return 0
    if unknown := set(options.targets) - every.keys():
        parser.error(f"no target {', '.join(unknown)}; there are {', '.join(every)}")
    if options.draw:
        return draw(options.targets, options.draw, options.seed)
    names = options.targets or list(every)
    whole, figures = sum(every[name].share for name in names), {}
    for name in names:
        runs = -(-options.runs * every[name].share // whole)
        command = [sys.executable, __file__, "--one", name, "--runs", str(runs)]
        began = time.monotonic()
        # atheris ends a process without tidying up: what it leaves lies in this one's folder.
        ended = subprocess.run(
            [*command, "--seed", str(options.seed)],
            capture_output=True,
            text=True,
            env=os.environ | {"FUZZ_FOLDER": str(FOLDER)},
        )
        found = ended.returncode != 0
        counts = dict(re.findall(r"^stat::(\w+): +(\d+)$", ended.stderr, re.MULTILINE))
        figures[name] = {
            "inputs": int(counts.get("number_of_executed_units", 0)),
            "seconds": round(time.monotonic() - began),
            "slowest": int(counts.get("slowest_unit_time_sec", 0)),
            "memory": int(counts.get("peak_rss_mb", 0)),
            "findings": int(found),
        }
        count, seconds = figures[name]["inputs"], figures[name]["seconds"]
        print(
            f"{name:16} {count:>11,} inputs, {seconds:6} s,",
            "FOUND:" if found else "nothing found",
            flush=True,
        )
        if found:
            print("\n".join(ended.stderr.split("\n")[-40:]))
        if options.record:
            options.record.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    return int(any(figure["findings"] for figure in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
