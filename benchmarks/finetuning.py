"""The same LoRA fine-tuning here and in PEFT on transformers, a process each: ratios.

    python benchmarks/finetuning.py                      small and middle, fp32, CPU
    python benchmarks/finetuning.py --size 3m --checkpointing
    python benchmarks/finetuning.py --device cuda --size 11b --dtype bfloat16

Measured are seconds of a training step, on the clock and of the processor, and peak
bytes above what the imports take (Linux), loading included. Both train the same
matrices, from the same first values, on the same weights and the same batch: four rows
with an image of 1, 2, 3 and 4 tiles and up to 96 tokens, the last 8 of each an answer.
Pixels, ids and masks are prepared beforehand for both. A step is forward, cross entropy
over the answers, backward, clipping and AdamW without decay. Ours is
`Trainer.train_step`; theirs is the usual loop with `labels`, for which transformers
computes the logits of all positions, as it does for its users. In bf16 adapters are
fp32 and the rest runs under autocast, in both.

Every pair of processes runs one after the other, so that both see the same machine; the
ratio of a pair is ours / theirs, and the median over the pairs is printed. Below 1 is
better here. Memory is that of one more pair, whose allocator gives freed blocks back at
once: the peak is of what is in use, and a step takes longer.

One process more trains transformers' model with its deviations from Meta's code
repaired, see notebooks/reference.py. In fp32 the losses and the lengths of the
gradients of all its steps must be ours: this shows that both do the same work. What is
timed is transformers as it is.

Every line of the output file is one comparison, with the raw figures of all pairs,
ours first; a new one takes the place of a line with the same settings.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import torch
import torch._dynamo  # AdamW would import it late: it is not training's memory
from torch import nn

from compare import SIZES, memory_of_process, write_checkpoint
from mllama_lite.adapters.data import Batch, Sample
from mllama_lite.adapters.lora import LowRank, add_adapter, find_targets
from mllama_lite.adapters.peft_files import hub_name
from mllama_lite.adapters.processes import Processes
from mllama_lite.adapters.recipe import Recipe, learning_rate
from mllama_lite.adapters.training import Trainer, recomputed
from mllama_lite.checkpoints.loading import load_model, save_model
from mllama_lite.model import empty_model
from mllama_lite.tiles import Tiles, canvases
from mllama_lite.vlm import VLM
from places import ROOT

OUT = ROOT / "notebooks" / "measured" / "finetuning.json"
LENGTHS, ANSWER, IMAGE_AT = (64, 75, 85, 96), 8, 5  # tokens
CANVASES = ((1, 1), (1, 2), (1, 3), (2, 2))
# fp32 sums in another order: relative differences of losses and of gradients' lengths.
LIMITS = {"losses": 1e-6, "norms": 1e-4}


def write_weights(config, dtype, folder):
    """A checkpoint of random numbers, with 0 for tiles that a canvas does not have.

    So it is in every published checkpoint; transformers relies on it, ours does not.
    """
    write_checkpoint(config, dtype, folder)
    model, _ = load_model(folder, "cpu", dtype)
    vision = model.vision_model
    for table in (
        vision.pre_tile_positional_embedding.embedding,
        vision.post_tile_positional_embedding.embedding,
        vision.gated_positional_embedding.tile_embedding,
    ):
        for i, (rows, columns) in enumerate(canvases(), start=1):
            table.weight.data[i].unflatten(0, (4, -1))[rows * columns :] = 0
    save_model(model, folder)


def make_data(config):
    """(samples, images): four of each, of random numbers that depend on nothing."""
    generator, side = torch.Generator().manual_seed(0), config.vision.image_size
    samples, images = [], []
    for length, canvas in zip(LENGTHS, CANVASES):
        size = (length,)
        row = torch.randint(10, config.text.vocab_size, size, generator=generator)
        row = row.tolist()
        row[IMAGE_AT] = config.image_token_index
        learned = [-100] * (length - ANSWER) + row[-ANSWER:]
        samples.append(Sample("", (), row, learned[1:] + [-100]))
        pixels = torch.randn(4, 3, side, side, generator=generator)
        pixels[canvas[0] * canvas[1] :] = 0
        images.append(Tiles(pixels, canvases().index(canvas) + 1, canvas))
    return samples, images


def padded(rows, value):
    """Rows of different lengths as an int tensor, `value` on the right."""
    rows = [torch.tensor(row) for row in rows]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def ours(folder, settings, recipe):
    """(step, parameters): a call of `step` trains once and returns loss and norm."""
    model, _ = load_model(folder, settings.device, settings.dtype)
    parameters = add_adapter(
        model, recipe.targets, recipe.rank, recipe.alpha, report=None
    )
    samples, images = make_data(model.config)
    batch = Batch(
        padded([sample.tokens for sample in samples], 0),
        padded([sample.labels for sample in samples], -100),
        [[image] for image in images],
    )
    vlm = VLM(model)
    trainer = Trainer(vlm, samples, [], recipe, Processes(settings.device))
    trainer.batches = lambda chosen: [batch]

    def step():
        with recomputed(model) if settings.checkpointing else nullcontext():
            trainer.train_step()
        return trainer.history[-1]["loss"], trainer.history[-1]["gradient_norm"]

    return step, parameters


def theirs(folder, settings, recipe, corrected):
    """As `ours`, with PEFT and transformers."""
    import peft
    import transformers

    device, dtype, config = settings.device, settings.dtype, SIZES[settings.size]
    model = transformers.MllamaForConditionalGeneration.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",
        device_map=None if device == "cpu" else device,
    )
    if corrected:
        sys.modules["reference"].correct(model)
    names = [hub_name(n) for n in find_targets(empty_model(config), recipe.targets)]
    lora = peft.LoraConfig(r=recipe.rank, lora_alpha=recipe.alpha, target_modules=names)
    model = peft.get_peft_model(model, lora).train()
    if settings.checkpointing:  # after wrapping, as transformers' Trainer does it
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
        # By default embeddings get a gradient, that of pixels too: then the whole
        # vision encoder goes backward, and a step takes more memory than without.
        model.disable_input_require_grads()
    generator = torch.Generator().manual_seed(0)  # `add_adapter` begins with it
    for name in names:
        A = model.base_model.model.get_submodule(name).lora_A["default"].weight
        pair = LowRank(A.shape[1], 1, recipe.rank, recipe.alpha)
        pair.first_values(generator)
        A.data.copy_(pair.A.data)
    inputs = {name: value.to(device) for name, value in hub_inputs(config).items()}
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.0)
    autocast = torch.autocast(
        torch.device(device).type, torch.bfloat16, enabled=dtype == torch.bfloat16
    )
    done = []

    def step():
        optimiser.zero_grad()
        with autocast:
            loss = model(**inputs, use_cache=False).loss
        loss.backward()
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, len(done), recipe.steps)
        norm = nn.utils.clip_grad_norm_(parameters, recipe.clip)
        optimiser.step()
        done.append((loss.item(), norm.item()))
        return done[-1]

    return step, parameters


def hub_inputs(config):
    """The batch as transformers' processor makes it, padded on the right."""
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    samples, images = make_data(config)
    rows, counts = [one.tokens for one in samples], [one.num_tiles for one in images]
    seen = [get_cross_attention_token_mask(r, config.image_token_index) for r in rows]
    masks = convert_sparse_cross_attention_mask_to_dense(
        seen, [[count] for count in counts], 4, max(LENGTHS)
    )
    labels = [[-100] * (len(row) - ANSWER) + row[-ANSWER:] for row in rows]
    return {
        "input_ids": padded(rows, 0),
        "labels": padded(labels, -100),
        "attention_mask": padded([[1] * len(row) for row in rows], 0),
        "cross_attention_mask": torch.tensor(masks),
        "pixel_values": torch.stack([image.pixel_values for image in images])[:, None],
        "aspect_ratio_ids": torch.tensor([[i.aspect_ratio_id] for i in images]),
        "aspect_ratio_mask": torch.tensor(
            [[[int(k < count) for k in range(4)]] for count in counts]
        ),
    }


def child(library, folder, settings):
    """Train with one library in this process and print the figures as JSON."""
    steps, settings = settings["steps"] + 1, SimpleNamespace(**settings)
    settings.dtype = getattr(torch, settings.dtype)
    on_gpu = settings.device.startswith("cuda")
    synchronize = torch.cuda.synchronize if on_gpu else lambda: None
    recipe = Recipe(
        tuple(settings.targets), settings.rank, 16, steps=steps, lr=2e-4, warmup=0.0
    )
    if library != "ours":
        warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of transformers
        import reference  # noqa: F401  (before transformers, see there)

        # isort: split
        import transformers
        from peft import get_peft_model  # noqa: F401
        from transformers import MllamaForConditionalGeneration  # noqa: F401

        transformers.utils.logging.disable_progress_bar()
        transformers.logging.set_verbosity_error()
    before = 0 if on_gpu else memory_of_process("VmRSS", reset=True)
    if library == "ours":
        step, parameters = ours(folder, settings, recipe)
    else:
        step, parameters = theirs(folder, settings, recipe, library == "corrected")
    rows = []
    for _ in range(steps):
        synchronize()
        start, start_cpu = time.perf_counter(), time.process_time()
        loss, norm = step()
        synchronize()
        end, end_cpu = time.perf_counter(), time.process_time()
        rows.append((end - start, end_cpu - start_cpu, loss, norm))
    peak = torch.cuda.max_memory_allocated() if on_gpu else memory_of_process("VmHWM")
    seconds, cpu_seconds, losses, norms = zip(*rows)
    figures = {"trained": sum(p.numel() for p in parameters), "bytes": peak - before}
    figures["seconds"] = statistics.median(seconds[1:])  # the first is not counted
    figures["cpu_seconds"] = statistics.median(cpu_seconds[1:])
    print(json.dumps(figures | {"losses": losses, "norms": norms}))


def run(library, folder, settings, **environment):
    """The figures of one process, with something more in its environment."""
    command = [sys.executable, __file__]
    command += ["--child", json.dumps([library, folder, settings])]
    environment = os.environ | environment
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return json.loads(output.stdout.splitlines()[-1])


def check(mine, other, exact):
    """Largest relative differences of losses and of norms; too large is an error."""
    if mine["trained"] != other["trained"]:
        raise SystemExit(
            f"Ours trains {mine['trained']} parameters and theirs {other['trained']}: "
            "expected equally many; choose other targets."
        )
    differences = {}
    for name, limit in LIMITS.items():
        each = [abs(a - b) / abs(b) for a, b in zip(mine[name], other[name])]
        differences[name] = max(each)
        if exact and not all(one <= limit for one in each):  # also when it is NaN
            raise SystemExit(
                f"The {name} are {mine[name]} and theirs {other[name]}: expected a "
                f"relative difference of at most {limit}; the work is not the same."
            )
    return differences


def compare(settings, num_pairs):
    """One line of the output: a dict."""
    both, dtype, device = ("ours", "theirs"), settings["dtype"], settings["device"]
    frugal, short = {"MALLOC_MMAP_THRESHOLD_": "65536"}, settings | {"steps": 1}
    with tempfile.TemporaryDirectory() as folder:
        write_weights(SIZES[settings["size"]], getattr(torch, dtype), folder)
        corrected = run("corrected", folder, settings)
        pairs = [[run(one, folder, settings) for one in both] for _ in range(num_pairs)]
        memory = [[run(one, folder, short, **frugal) for one in both]]
    first, packages = [*pairs[0], corrected], ("torch", "transformers", "peft")
    processor = f"CPU, {torch.get_num_threads()} threads"
    if device != "cpu":
        processor = torch.cuda.get_device_name(device)
    line = settings | {
        "machine": f"{platform.system()} on {platform.machine()}, {processor}",
        "versions": {name: version(name).split("+")[0] for name in packages},
        "trained": [one["trained"] for one in first[:2]],
        "first_loss": [one["losses"][0] for one in first],
        "differences": check(first[0], corrected, dtype == "float32"),
    }
    for name, source in (("seconds", pairs), ("cpu_seconds", pairs), ("bytes", memory)):
        line[name] = [[a[name], b[name]] for a, b in source]
        line[f"{name}_ratio"] = statistics.median(a / b for a, b in line[name])
    return line


def write_line(path, line):
    """Add a line to the output file, or replace that with the same settings."""
    names = ("size", "dtype", "device", "checkpointing", "rank", "targets")
    lines = json.loads(path.read_text()) if path.is_file() else []
    lines = [one for one in lines if any(one[n] != line[n] for n in names)] + [line]
    path.write_text("[\n" + ",\n".join(map(json.dumps, lines)) + "\n]\n")


def describe(line):
    """A line as it is printed."""
    shown = [f"{line['size']:>5} {line['dtype']:<9}"]
    shown += ["checkpointing"] * line["checkpointing"]
    for name, unit in (("seconds", 1), ("cpu_seconds", 1), ("bytes", 2**20)):
        own = statistics.median(a for a, _ in line[name]) / unit
        shown.append(f"{name} {line[name + '_ratio']:.2f} [{own:.4g}]")
    return "  ".join(shown)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, action="append")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], action="append")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--checkpointing", action="store_true", help="in both")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=5, help="timed in a process")
    parser.add_argument("--targets", nargs="+", default=["self", "mlp", "cross"])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(*options.child)
        return
    print("ratio ours / theirs, median of pairs; in brackets ours, seconds or MiB")
    names = ("device", "checkpointing", "rank", "targets", "steps")
    for size in options.size or ["3m", "400m"]:
        for dtype in options.dtype or ["float32"]:
            settings = {"size": size, "dtype": dtype}
            settings |= {name: getattr(options, name) for name in names}
            line = compare(settings, options.pairs)
            write_line(options.out, line)
            print(describe(line), flush=True)


if __name__ == "__main__":
    main()
