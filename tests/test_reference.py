"""The witnesses can be imported beside any build of torch and torchvision."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"

# A torchvision as far as it matters here: its library declares an operator, which the rest
# of it registers something for. Beside another build of torch the library does not load.
TORCHVISION = """
import torch

if {loads}:
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor boxes, Tensor scores, float limit) -> Tensor")


@torch.library.register_fake("torchvision::nms")
def nms(*arguments):
    pass
"""
PROGRAM = """
import reference, torch, torchvision

print(torch.ops.torchvision.nms.default._schema, len(reference._declared))
"""


@pytest.mark.parametrize(
    "loads, said",
    [
        (
            True,
            "torchvision::nms(Tensor boxes, Tensor scores, float limit) -> Tensor 0",
        ),
        (False, "torchvision::nms() -> () 3"),
    ],
)
def test_operators_are_declared_only_where_they_are_missing(tmp_path, loads, said):
    (tmp_path / "torchvision.py").write_text(TORCHVISION.format(loads=loads))
    paths = [tmp_path, NOTEBOOKS, NOTEBOOKS.parent]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
    )
    assert (ran.returncode, ran.stdout.strip()) == (0, said), ran.stderr
