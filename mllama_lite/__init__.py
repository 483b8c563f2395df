"""Llama 3.2 Vision, from scratch: a module for each chapter of the book.

import mllama_lite as ml
vlm = ml.load("meta-llama/Llama-3.2-11B-Vision-Instruct", device="cuda", dtype="bfloat16")
vlm.ask("photo.jpg", "What is in this picture?")
"""

from mllama_lite.checkpoints.loading import load_model, open_checkpoint, save_model
from mllama_lite.errors import InputError
from mllama_lite.generation import Sampling
from mllama_lite.model import Mllama, MllamaConfig
from mllama_lite.tiles import image_to_tiles, open_image
from mllama_lite.tokenizer import Tokenizer
from mllama_lite.vlm import VLM, Conversation, load


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
