"""What an import of the package brings with it, what it must not, and what is shipped."""

import ast
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOT_SHIPPED = {"ruff.toml"}
# What the package takes of torch that torch promises to nobody. The oldest and the newest
# torch that are allowed run this list, so that a missing name is found here first.
PRIVATE_TORCH = {
    "torch._subclasses.fake_tensor": {"FakeTensor", "FakeTensorMode"},
    "torch.utils._python_dispatch": {"TorchDispatchMode"},
    "torch.utils._pytree": {"tree_iter", "tree_map_only"},
    "torch.ops.aten": {"_local_scalar_dense"},
    "torch.UntypedStorage": {"_cdata"},
    "torch.ops.mkldnn": {"_is_mkldnn_bf16_supported"},
}

FOREIGN = (
    "transformers",
    "llama_models",
    "fairscale",
    "torchvision",
    "huggingface_hub",
    "matplotlib",
    "sklearn",
    "IPython",
    "ipywidgets",
    "nbformat",
    "peft",
    "accelerate",
    "datasets",
    "pandas",
)
PROGRAM = """
import importlib, pkgutil, sys
import mllama_lite
for module in pkgutil.walk_packages(mllama_lite.__path__, "mllama_lite."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def test_nothing_foreign_is_imported():
    """Not by any module, the command line included."""
    command = [sys.executable, "-c", PROGRAM]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = set(output.stdout.split())
    assert "mllama_lite" in imported and "torch" in imported
    assert not imported & set(FOREIGN)


def test_public_names_exist():
    import mllama_lite as ml

    for name in ml.__all__:
        assert getattr(ml, name).__doc__, name


def private_imports():
    """(module, name) of every import from a private place of torch."""
    for path in (ROOT / "mllama_lite").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("torch"):
                for alias in node.names:
                    if "._" in f"{node.module}.{alias.name}":
                        yield node.module, alias.name
            elif isinstance(node, ast.Import):
                assert not any(a.name.startswith("torch._") for a in node.names), path


def test_private_names_of_torch_are_in_the_list():
    found = set(private_imports())
    assert found
    for module, name in found:
        assert name in PRIVATE_TORCH.get(module, ()), (module, name)


@pytest.mark.parametrize("place", PRIVATE_TORCH)
def test_torch_still_has_its_private_names(place):
    home = pkgutil.resolve_name(place)
    for name in PRIVATE_TORCH[place]:
        assert hasattr(home, name), (place, name)


def test_every_file_of_the_package_is_shipped():
    """Modules lie in packages that setuptools finds, and everything else is named as data."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"][
        "setuptools"
    ]
    assert settings["packages"]["find"] == {
        "include": ["mllama_lite*"],
        "namespaces": False,
    }
    package = ROOT / "mllama_lite"
    files = {p for p in package.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    modules = {path for path in files if path.suffix == ".py"}
    assert all((path.parent / "__init__.py").is_file() for path in modules)
    patterns = settings["package-data"]["mllama_lite"]
    data = {path for pattern in patterns for path in package.glob(pattern)}
    left = {path.name for path in files - modules - data}
    assert left == NOT_SHIPPED and package / "py.typed" in data


def test_notebooks_can_be_compared_by_their_cells():
    """What `git diff` shows of a notebook, see CONTRIBUTING.md: sources and no outputs."""
    path = ROOT / "notebooks" / "02_rope.ipynb"
    command = [sys.executable, str(ROOT / "tools" / "cells.py"), str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "def apply_rope(" in text and "image/png" not in text
    assert text.count("# %% ") > 50
