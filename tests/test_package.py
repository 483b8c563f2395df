"""What an import of the package brings with it, and what it must not."""

import subprocess
import sys

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
