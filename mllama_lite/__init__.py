"""Llama 3.2 Vision, from scratch: a module for each chapter of the book.

import mllama_lite as ml
vlm = ml.load("meta-llama/Llama-3.2-11B-Vision-Instruct", device="cuda", dtype="bfloat16")
vlm.ask("What is in this picture?", "photo.jpg")

What is named here is imported when it is first used: torch takes seconds.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from mllama_lite.checkpoints.loading import load_model, open_checkpoint, save_model
    from mllama_lite.errors import InputError
    from mllama_lite.generation import Sampling
    from mllama_lite.model import Mllama, MllamaConfig
    from mllama_lite.tiles import image_to_tiles, open_image
    from mllama_lite.tokenizer import Tokenizer
    from mllama_lite.vlm import VLM, Conversation, load

__version__ = "0.1.0"
__all__ = [
    "Conversation",
    "InputError",
    "Mllama",
    "MllamaConfig",
    "Sampling",
    "Tokenizer",
    "VLM",
    "image_to_tiles",
    "load",
    "load_model",
    "open_checkpoint",
    "open_image",
    "save_model",
]
_HOMES = {
    "checkpoints.loading": ("load_model", "open_checkpoint", "save_model"),
    "errors": ("InputError",),
    "generation": ("Sampling",),
    "model": ("Mllama", "MllamaConfig"),
    "tiles": ("image_to_tiles", "open_image"),
    "tokenizer": ("Tokenizer",),
    "vlm": ("VLM", "Conversation", "load"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(
                import_module(f"mllama_lite.{module}"), name
            )
            return value
        if name == module:
            return import_module(f"mllama_lite.{name}")
    raise AttributeError(f"module 'mllama_lite' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
