# Generated from notebooks/10_inference.ipynb: edit there, or here and run `make update`.
"""What asking costs in memory, computed without loading anything.

Built in chapter 10, notebooks/10_inference.ipynb.
"""

import torch

from mllama_lite.devices import find_dtype
from mllama_lite.files import check_fields, whole
from mllama_lite.model import MllamaConfig, empty_model


def memory_needs(
    config: MllamaConfig, dtype: torch.dtype | str, tokens: int, images: int
) -> dict[str, int]:
    """Bytes that a conversation takes, computed without loading anything.

    Args:
        config: MllamaConfig.
        dtype: torch dtype of the parameters or its name.
        tokens: T, prompt and answer together.
        images: M, each with all its tiles.

    Returns:
        dict: "weights"; "text cache" and "image cache", keys and values; "working", the
        largest set of intermediate results alive at once, while an image is encoded or
        the prompt is taken in (an estimate; the other three are exact).

    Raises:
        InputError: tokens or images that are no whole numbers; no such dtype.
    """
    counts = {"tokens": whole(0, 2**48), "images": whole(0, 2**48)}
    check_fields({"tokens": tokens, "images": images}, counts, "The conversation")
    size = (find_dtype(dtype) or torch.float32).itemsize
    text, vision = config.text, config.vision
    weights = sum(parameter.numel() for parameter in empty_model(config).parameters())
    a_token = 2 * text.num_key_value_heads * text.head_dim
    needs = {
        "weights": weights * size,
        "text cache": tokens * a_token * len(text.self_attention_layers) * size,
        "image cache": 0,
    }
    # In the MLP: three tensors of its width, four of the model's around it.
    working = tokens * (3 * text.intermediate_size + 4 * text.hidden_size) * size
    if vision and images:
        seen = images * vision.max_num_tiles * vision.num_patches
        needs["image cache"] = seen * a_token * len(text.cross_attention_layers) * size
        kept = 2 + len(vision.intermediate_layers_indices)
        widths = max(2 * vision.intermediate_size, 5 * vision.hidden_size)
        encoding = seen * (kept * vision.hidden_size + widths) * size
        handing = seen * (2 * vision.vision_output_dim + text.hidden_size) * size
        working = max(working, encoding, handing)
    return needs | {"working": working}
