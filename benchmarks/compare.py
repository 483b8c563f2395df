"""The same weights here and in transformers, in turn, a process each: ratios.

    python benchmarks/compare.py                        small and middle, fp32 and bf16, CPU
    python benchmarks/compare.py --device cuda --size 11b --dtype bfloat16

Measured are load time, prefill of an image of four tiles with a prompt, decode of a token
at a time with the cache, and peak memory above what the imports take (Linux). Every pair
of processes runs one after the other, so that both see the same machine; the ratio of a
pair is ours / transformers, and the median over the pairs is printed. Below 1 is better
here. Weights are random.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from mllama_lite.checkpoints.loading import load_model, save_model
from mllama_lite.decoder import TextConfig
from mllama_lite.generation import Session
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import Mllama, MllamaConfig
from mllama_lite.tiles import Tiles

SIZES = {
    "3m": MllamaConfig(
        TextConfig(
            vocab_size=2048,
            hidden_size=160,
            intermediate_size=448,
            num_hidden_layers=6,
            num_attention_heads=5,
            num_key_value_heads=1,
            head_dim=32,
            cross_attention_layers=(1, 4),
        ),
        VisionConfig(
            hidden_size=96,
            attention_heads=4,
            intermediate_size=384,
            num_hidden_layers=4,
            num_global_layers=2,
            image_size=84,
            intermediate_layers_indices=(1, 3),
        ),
        image_token_index=2048,
    ),
    "100m": MllamaConfig(
        TextConfig(
            vocab_size=16000,
            hidden_size=640,
            intermediate_size=1920,
            num_hidden_layers=12,
            num_attention_heads=10,
            num_key_value_heads=2,
            head_dim=64,
            cross_attention_layers=(3, 8),
        ),
        VisionConfig(
            hidden_size=384,
            attention_heads=6,
            intermediate_size=1536,
            num_hidden_layers=8,
            num_global_layers=2,
            image_size=224,
            intermediate_layers_indices=(1, 3, 5),
        ),
        image_token_index=16000,
    ),
    "400m": MllamaConfig(
        TextConfig(
            vocab_size=32000,
            hidden_size=1024,
            intermediate_size=3584,
            num_hidden_layers=20,
            num_attention_heads=16,
            num_key_value_heads=4,
            head_dim=64,
            cross_attention_layers=(3, 8, 13, 18),
        ),
        VisionConfig(
            hidden_size=512,
            attention_heads=8,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_global_layers=4,
            image_size=224,
            intermediate_layers_indices=(1, 3, 5, 8, 10),
        ),
        image_token_index=32000,
    ),
    "11b": MllamaConfig(),
}
PROMPT = 64  # tokens, the image's among them


def write_checkpoint(config, dtype, folder):
    """A checkpoint of random numbers in the hub's layout."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = Mllama(config).to(dtype)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.02)
            if (
                "norm" in name
                and name.endswith("weight")
                or "gate" in name.split(".")[-1]
            ):
                parameter.add_(1)
    save_model(model, folder)


def measure(run, repeats, synchronize):
    """Median seconds of `run` over `repeats`, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        synchronize()
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


@torch.inference_mode()
def child(library, folder, dtype, device, decode):
    """Measure one library in this process and print the figures as JSON."""
    torch.set_num_threads(2)
    on_gpu = device.startswith("cuda")
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    config = SIZES[Path(folder).name.split("-")[0]]
    side = config.vision.image_size
    pixels = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    row = [config.image_token_index if i == 4 else 10 + i for i in range(PROMPT)]
    if library == "transformers":
        import places  # noqa: F401  (the next is found by it)
        import reference  # noqa: F401  (makes a torchvision that doesn't fit importable)

        # isort: split
        import transformers

        transformers.utils.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
    synchronize()
    before = (
        torch.cuda.memory_allocated()
        if on_gpu
        else memory_of_process("VmRSS", reset=True)
    )
    start = time.perf_counter()
    if library == "ours":
        model, _ = load_model(folder, device, dtype)
    else:
        model = transformers.MllamaForConditionalGeneration.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation="sdpa",
            device_map=device if on_gpu else None,
        ).eval()
    synchronize()
    figures = {"load": time.perf_counter() - start}
    prefill, steps = (ours if library == "ours" else theirs)(
        model, row, pixels, device, decode
    )
    repeats = 5 if config is SIZES["3m"] else 3
    figures["prefill"] = measure(prefill, repeats, synchronize)
    figures["decode"] = measure(steps, repeats, synchronize) / decode
    peak = torch.cuda.max_memory_allocated() if on_gpu else memory_of_process("VmHWM")
    print(json.dumps(figures | {"memory": peak - before}))


def memory_of_process(name, reset=False):
    """Resident bytes from Linux's counters: VmRSS is now, VmHWM the peak since a reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(re.search(name + r":\s+(\d+) kB", status)[1]) * 1024


def ours(model, row, pixels, device, decode):
    """(prefill, decode) for mllama_lite."""
    tiles = [[Tiles(pixels, 6, (2, 2))]]
    state = {}

    def prefill():
        state["session"] = Session(model, 1, PROMPT + 8 * decode)
        state["session"].extend([row], tiles)

    def steps():
        token = torch.tensor([5], device=device)
        for _ in range(decode):
            token = state["session"].step(token).argmax(dim=-1)
            token.tolist()

    return prefill, steps


def theirs(model, row, pixels, device, decode):
    """(prefill, decode) for transformers: its forward with its cache, no generate loop."""
    mask = torch.zeros(1, len(row), 1, 4, dtype=torch.long, device=device)
    mask[:, row.index(max(row)) :] = 1
    inputs = {
        "pixel_values": pixels[None, None].to(device, model.dtype),
        "aspect_ratio_ids": torch.tensor([[6]], device=device),
        "aspect_ratio_mask": torch.ones(1, 1, 4, dtype=torch.long, device=device),
    }
    state = {}

    def prefill():
        tokens = torch.tensor([row], device=device)
        result = model(
            input_ids=tokens,
            cross_attention_mask=mask,
            logits_to_keep=1,
            use_cache=True,
            **inputs,
        )
        state["cache"] = result.past_key_values

    def steps():
        token = torch.tensor([[5]], device=device)
        for _ in range(decode):
            result = model(
                input_ids=token,
                past_key_values=state["cache"],
                cross_attention_mask=mask[:, -1:],
                use_cache=True,
            )
            token = result.logits[:, -1:].argmax(dim=-1)
            token.tolist()

    return prefill, steps


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--decode", type=int, default=32, help="tokens a measurement")
    parser.add_argument(
        "--child", nargs=2, metavar=("LIBRARY", "FOLDER"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.child:
        dtype = getattr(torch, options.dtype[0])
        child(*options.child, dtype, options.device, options.decode)
        return
    print(
        "ratio ours / transformers, median of pairs; in brackets ours, seconds or MiB"
    )
    for size in options.size or ["3m", "400m"]:
        for dtype in options.dtype or ["float32", "bfloat16"]:
            with tempfile.TemporaryDirectory() as parent:
                folder = Path(parent) / f"{size}-{dtype}"
                write_checkpoint(SIZES[size], getattr(torch, dtype), folder)
                runs = {"ours": [], "transformers": []}
                for _ in range(options.pairs):
                    for library in runs:
                        command = [
                            sys.executable,
                            __file__,
                            "--child",
                            library,
                            str(folder),
                        ]
                        command += ["--dtype", dtype, "--device", options.device]
                        command += ["--decode", str(options.decode)]
                        output = subprocess.run(
                            command, check=True, capture_output=True, text=True
                        )
                        runs[library].append(json.loads(output.stdout.splitlines()[-1]))
            line = []
            for name in ("load", "prefill", "decode", "memory"):
                pairs = zip(runs["ours"], runs["transformers"])
                ratio = statistics.median(a[name] / b[name] for a, b in pairs)
                own = statistics.median(a[name] for a in runs["ours"])
                shown = f"{own / 2**20:.0f}" if name == "memory" else f"{own:.4f}"
                line.append(f"{name} {ratio:.2f} [{shown}]")
            print(f"{size:>5} {dtype:<9} " + "  ".join(line), flush=True)


if __name__ == "__main__":
    main()
