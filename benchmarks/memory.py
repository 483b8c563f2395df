"""Memory of a training step, counted on tensors without numbers and measured on real ones.

    python benchmarks/memory.py                         as listed below, on the CPU
    python benchmarks/memory.py --device cuda --size 11b

Counted is what `mllama_lite.adapters.cost` says. Measured are two real steps of the trainer in a
process of its own, with random weights: on a CPU the peak of its resident memory above
what it was before the model was made (Linux), on a GPU the peak of what torch allocated.
At the size of the 11B, which the lines do not have, steps are counted alone. All goes to
notebooks/measured/memory.json.
"""

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch

from compare import SIZES, memory_of_process
from mllama_lite.adapters.cost import Rehearsal, training_cost
from mllama_lite.adapters.lora import add_adapter
from mllama_lite.adapters.training import recomputed
from mllama_lite.model import empty_model

OUT = Path(__file__).resolve().parent.parent / "notebooks" / "measured" / "memory.json"
USUAL = ("self", "mlp", "cross")
MIXED = [(300, 9, (4, 1)), (512, 90, ()), (99, 9, (2,))]
# (size, dtype, targets, checkpointing, rows as in `Rehearsal`). On a CPU, small peaks in
# bf16 are higher than counted: oneDNN keeps code for every shape of a product it meets.
SETTINGS = [
    ("100m", "float32", ("self",), False, [(1024, 64, ())]),
    ("100m", "float32", USUAL, False, [(512, 64, (4,))]),
    ("100m", "float32", USUAL, True, [(2048, 64, (4,))]),
    ("100m", "float32", USUAL, False, [(1024, 960, (2,))]),
    ("100m", "float32", ("all",), False, [(256, 32, (4,))]),
    ("100m", "float32", ("all",), True, [(512, 32, (4, 4, 4, 4))]),
    ("100m", "bfloat16", ("self",), False, [(2048, 64, (1,))]),
    ("100m", "bfloat16", USUAL, False, [(1024, 64, (4, 4, 4, 4))]),
    ("100m", "bfloat16", USUAL, True, [(2048, 64, (4, 4, 4, 4))]),
    ("400m", "float32", USUAL, False, [(512, 64, (4,))]),
    ("400m", "float32", ("all",), True, [(1024, 32, (4, 4, 4, 4))]),
    ("400m", "bfloat16", USUAL, False, [(1024, 64, (4, 4, 4, 4))]),
    ("400m", "bfloat16", ("all",), True, MIXED),
    ("100m", "bfloat16", ("all",), True, MIXED),
]
# Of a sample of the 11B, whose images have four tiles each.
LENGTHS, IMAGES, ANSWER = (256, 1024, 4096), (0, 1, 2, 4), 64


def trainer_of(config, dtype, targets, rows, device):
    """A Rehearsal whose weights are small random numbers."""
    model = empty_model(config).to(dtype).to_empty(device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.02)
    model.language_model.tie_weights()
    add_adapter(model, targets, report=None)
    return Rehearsal(model, rows)


def steps(config, dtype, targets, checkpointing, rows, device):
    """Two real steps: from the second on there are the optimiser's averages."""
    trainer = trainer_of(config, getattr(torch, dtype), targets, rows, device)
    with recomputed(trainer.model) if checkpointing else nullcontext():
        trainer.train_step()
        trainer.train_step()


def peak(size, dtype, targets, checkpointing, rows, device):
    """Measured bytes of two steps, above what this process had before."""
    # What libraries allocate when they are first used is no part of a step.
    steps(SIZES["3m"], dtype, targets, checkpointing, [(64, 9, (2,))], device)
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        steps(SIZES[size], dtype, targets, checkpointing, rows, device)
        return torch.cuda.max_memory_allocated() - before
    before = memory_of_process("VmRSS", reset=True)
    steps(SIZES[size], dtype, targets, checkpointing, rows, device)
    return memory_of_process("VmHWM") - before


def measured(*setting):
    """`peak` in a new process."""
    command = [sys.executable, __file__, "--child", json.dumps(setting)]
    # glibc keeps small blocks for itself; these go back to the system when freed.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    output = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env=environment
    )
    return int(output.stdout.splitlines()[-1])


def compared(size, dtype, targets, checkpointing, rows, device):
    """One line of the file: the setting, what is counted, what is measured."""
    cost = training_cost(
        SIZES[size],
        rows,
        targets,
        dtype=getattr(torch, dtype),
        checkpointing=checkpointing,
        device=device,
    )
    bytes_measured = measured(size, dtype, targets, checkpointing, rows, device)
    return {
        "size": size,
        "dtype": dtype,
        "targets": targets,
        "checkpointing": checkpointing,
        "rows": rows,
        "counted": asdict(cost) | {"total": cost.total},
        "measured": bytes_measured,
        "ratio": cost.total / bytes_measured,
    }


def full_size(length, images, checkpointing):
    """One line of the grid: what a step of the 11B needs in bf16, counted."""
    rows = [(length, ANSWER, (4,) * images)]
    cost = training_cost(SIZES["11b"], rows, USUAL, checkpointing=checkpointing)
    setting = {"tokens": length, "images": images, "checkpointing": checkpointing}
    return setting | asdict(cost) | {"total": cost.total}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=SIZES, help="this one instead of theirs")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(peak(*json.loads(options.child)))
        return
    print("ratio counted / measured; in brackets measured MiB")
    machine = f"{platform.system()} on {platform.machine()}, CPU"
    if torch.device(options.device).type == "cuda":
        machine = torch.cuda.get_device_name(options.device)
    record = {"machine": machine, "torch": torch.__version__, "lines": []}
    for size, dtype, targets, checkpointing, rows in SETTINGS:
        size = options.size or size
        line = compared(size, dtype, targets, checkpointing, rows, options.device)
        record["lines"].append(line)
        text = f"{size:>5} {dtype:<9} {'+'.join(targets):<15} "
        text += f"{'recomputed' if checkpointing else 'kept':<11}{rows!s:<50}"
        print(f"{text}{line['ratio']:.3f} [{line['measured'] / 2**20:.0f}]", flush=True)
    grid = itertools.product(LENGTHS, IMAGES, (False, True))
    record["full_size"] = [full_size(*setting) for setting in grid]
    options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
