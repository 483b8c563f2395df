"""Llama 3.2 Vision, from scratch: a module for each chapter of the book."""

from mllama_lite.errors import InputError
