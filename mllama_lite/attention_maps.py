# Generated from notebooks/11_training.ipynb: edit there, or here and run `make update`.
"""Where the model looks while it answers: the weights of its cross-attention as pictures.

Built in chapter 11, notebooks/11_training.ipynb. The fused kernels never show their
weights, so they are computed again, by hand, on a text that is already written.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from mllama_lite.attention import attention_by_hand
from mllama_lite.cross_attention import CrossAttention
from mllama_lite.errors import InputError
from mllama_lite.local_vision import VisionConfig
from mllama_lite.tiles import Picture, choose_canvas, open_image, resized_size
from mllama_lite.tokenizer import ImagePart
from mllama_lite.vlm import VLM


LONGEST = 16383  # pixels of a side of a drawing: the most that a WebP file can have


@dataclass
class Looks:
    """An answer, and where each of its tokens was looked up.

    Attributes:
        answer: text of the answer.
        pieces: list of A str, the answer's tokens, special ones left out.
        images: list of M PIL images.
        weights: for each image, a dict from the index of a cross-attention layer to
            fp32 [A, H, tiles, P]: how much of a head's attention each token of the
            image's valid tiles got, P the class token first. All images of a row sum
            to 1.
    """

    answer: str
    pieces: list[str]
    images: list[Image.Image] = field(repr=False)
    weights: list[dict[int, torch.Tensor]] = field(repr=False)


@torch.inference_mode()
def look(
    vlm: VLM,
    question: str,
    images: Picture | Sequence[Picture],
    max_new_tokens: int = 64,
) -> Looks:
    """Answer a question greedily and keep what cross-attention looked at.

    Args:
        vlm: VLM with a tokenizer.
        question: text.
        images: an image as `open_image` takes it, or a list of at least one.
        max_new_tokens: of the answer, at most.

    Returns:
        Looks.

    Raises:
        InputError: see `open_image` and `VLM.generate`; a text-only model, or one
            without a tokenizer.
    """
    config, tokenizer = vlm.config.vision, vlm.conversation().tokenizer
    if config is None:
        raise InputError(
            "A text-only model looks at no picture: expected a vision model; use one."
        )
    sources: Sequence[Any] = images if isinstance(images, (list, tuple)) else [images]
    pictures = [open_image(source) for source in sources]
    message = {"role": "user", "content": [*map(ImagePart, pictures), question]}
    prompt, _ = tokenizer.encode_chat([message])
    ids = vlm.generate(prompt, pictures, max_new_tokens)
    found: dict[int, torch.Tensor] = {}
    hooks = []
    # The token at one place is chosen from what was seen at the place before.
    places = slice(len(prompt) - 1, len(prompt) - 1 + len(ids))
    for layer in vlm.model.cross_attention_layers:

        def keep(
            attention: Any, args: Any, output: Any, layer: int = layer.layer
        ) -> None:
            found[layer] = cross_weights(attention, *args)[0, :, places].cpu()

        hooks.append(layer.cross_attn.register_forward_hook(keep))
    try:
        vlm.logits(prompt + ids, pictures)
    finally:
        for hook in hooks:
            hook.remove()
    shown = [n for n, id in enumerate(ids) if not tokenizer.is_special(id)]
    weights, first = [], 0
    for image in pictures:
        rows, columns = choose_canvas(
            image.height, image.width, config.image_size, config.max_num_tiles
        )
        end = first + rows * columns * config.num_patches
        weights.append(
            {
                layer: all_weights[:, shown, first:end]
                .transpose(0, 1)
                .unflatten(-1, (rows * columns, config.num_patches))
                for layer, all_weights in found.items()
            }
        )  # [A, H, tiles, P]
        first = end
    pieces = [tokenizer.decode([ids[n]]) for n in shown]
    answer = tokenizer.decode(ids, skip_special=True)
    return Looks(answer, pieces, pictures, weights)


def cross_weights(
    attention: CrossAttention,
    hidden: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weights of a CrossAttention for the arguments of its `forward`.

    Returns:
        fp32 [B, H, T, V].
    """
    query = attention.q_proj(hidden).unflatten(-1, (-1, attention.head_dim))
    query = attention.q_norm(query).transpose(1, 2)  # [B, H, T, E]
    return attention_by_hand(query, key, value, mask)[1]


def patch_map(weights: torch.Tensor, canvas: tuple[int, int]) -> torch.Tensor:
    """Weights of an image's tokens laid out as its patches lie.

    Args:
        weights: [..., tiles, P], the class token first.
        canvas: (rows, columns) of tiles.

    Returns:
        [..., rows·side, columns·side]; class tokens, which have no place, are left out.
    """
    side = round((weights.shape[-1] - 1) ** 0.5)
    grid = weights[..., 1:].unflatten(-1, (side, side)).unflatten(-3, canvas)
    grid = grid.transpose(-3, -2)  # [..., rows, side, columns, side]
    return grid.flatten(-4, -3).flatten(-2, -1)


def draw_looks(
    looks: Looks, config: VisionConfig, image: int | None = None, height: int = 110
) -> Image.Image:
    """One picture of where each token of an answer was looked up, layer by layer.

    Args:
        looks: Looks.
        config: VisionConfig.
        image: number of an image; None for all, one below the other.
        height: of a panel, in pixels. A panel is at most four times as wide. If
            the whole had more than LONGEST pixels on a side, panels are smaller; of an
            answer too long even so, the first tokens are drawn.

    Returns:
        PIL image: a column for each token, a row for each layer, heads averaged.
        Orange is attention, full orange the most that a patch of the panel got.

    Raises:
        InputError: so many images that nothing could be seen.
    """
    left, top, gap, narrowest = 62, 24, 6, 40
    if image is None:
        every = range(len(looks.images))
        rows = max(map(len, looks.weights), default=1) or 1
        fits = (LONGEST // max(1, len(every)) - top) // rows - gap
        if fits < 8:
            raise InputError(
                f"There are {len(every)} images with {rows} layers each: expected fewer, "
                "to be drawn below each other; draw them one by one."
            )
        height = min(height, fits)
        return _stacked([draw_looks(looks, config, i, height) for i in every])
    picture = looks.images[image]
    size = picture.height, picture.width
    canvas = choose_canvas(*size, config.image_size, config.max_num_tiles)
    shown = resized_size(*size, canvas, config.image_size)
    layers = list(looks.weights[image])
    pieces = looks.pieces[: (LONGEST - left) // (narrowest + gap)]
    wide = min(4 * height, round(height * picture.width / picture.height))
    fits = (LONGEST - left) // max(1, len(pieces)) - gap
    width = max(narrowest, min(wide, fits))
    grey = picture.convert("L").resize((width, height)).convert("RGB")
    grey = Image.blend(grey, Image.new("RGB", grey.size, "white"), 0.25)
    font = ImageFont.load_default(13)
    whole = Image.new(
        "RGB",
        (
            left + len(pieces) * (width + gap),
            top + len(layers) * (height + gap),
        ),
        "white",
    )
    draw = ImageDraw.Draw(whole)
    orange = Image.new("RGB", (width, height), (230, 110, 0))
    for row, layer in enumerate(layers):
        y = top + row * (height + gap)
        draw.text((6, y + height // 2 - 8), f"layer {layer}", "black", font)
        maps = patch_map(looks.weights[image][layer].mean(dim=1), canvas)
        for column, (piece, weights) in enumerate(zip(pieces, maps)):
            x = left + column * (width + gap)
            if row == 0:
                text = piece.strip() or "(space)"
                draw.text((x + width // 2, 17), text, "black", font, anchor="ms")
            share = (weights / weights.max().clamp(min=1e-9)).float().numpy()
            mask = Image.fromarray((share * 190).astype(np.uint8))
            # The map covers the canvas, of which the picture may leave a part empty.
            whole_size = [n * config.image_size for n in canvas]
            right = mask.width * shown[1] / whole_size[1]
            bottom = mask.height * shown[0] / whole_size[0]
            box = (0, 0, right, bottom)
            mask = mask.resize((width, height), Image.Resampling.NEAREST, box)
            panel = Image.composite(orange, grey, mask)
            whole.paste(panel, (x, y))
    return whole


def _stacked(pictures: list[Image.Image]) -> Image.Image:
    """Pictures one below the other, on white."""
    size = max(one.width for one in pictures), sum(one.height for one in pictures)
    whole, y = Image.new("RGB", size, "white"), 0
    for one in pictures:
        whole.paste(one, (0, y))
        y += one.height
    return whole
