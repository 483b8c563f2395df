"""Random configurations, images and prompts for the comparisons of the whole model."""

import random

import numpy as np
import torch
from PIL import Image

import reference
from mllama_lite.tiles import canvases, image_to_tiles


def image(rng, canvas, side):
    """A noise image that goes on the canvas (rows, columns) of tiles of `side` pixels."""
    rows, columns = canvas
    size = (
        columns * side - rng.randrange(side // 2),
        rows * side - rng.randrange(side // 2),
    )
    noise = np.random.RandomState(rng.randrange(2**31)).randint(
        0, 256, (*size[::-1], 3)
    )
    return Image.fromarray(noise.astype(np.uint8))


def prompt(rng, config, num_images, length, consecutive=False):
    """Random ids with `num_images` image tokens, the first not at the beginning."""
    ids = [rng.randrange(config.text.vocab_size) for _ in range(length)]
    if consecutive:
        start = rng.randrange(1, length - num_images - 1)
        places = range(start, start + num_images)
    else:
        places = rng.sample(range(1, length - 1), num_images)
    for place in places:
        ids[place] = config.image_token_index
    return ids


def batch(seed, config, num_rows=4):
    """Rows of different lengths with 0 to 3 images each, some of them consecutive."""
    rng = random.Random(seed)
    arrangements = canvases()
    rows, images = [], []
    for i in range(num_rows):
        count = (seed + i) % 4
        rows.append(
            prompt(
                rng, config, count, rng.randrange(9, 16), consecutive=rng.random() < 0.4
            )
        )
        chosen = [
            arrangements[(seed * 3 + i * 2 + k) % len(arrangements)]
            for k in range(count)
        ]
        images.append(
            [image(rng, canvas, config.vision.image_size) for canvas in chosen]
        )
    return rows, images


def models(seed):
    """(config, Meta's model, ours) with the same random parameters."""
    config = reference.random_config(seed)
    meta = reference.meta_model(config, seed=seed)
    return config, meta, reference.ours_from_meta(meta, config)


def tiles_of(config, images):
    return [
        [image_to_tiles(one, config.vision.image_size) for one in row] for row in images
    ]


def batch_logits(model, rows, images):
    """Our logits for all tokens of a batch, [B, T, W]; short rows are padded with 0."""
    length = max(map(len, rows))
    tokens = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    vision = model.vision_context(rows, tiles_of(model.config, images))
    return model(tokens, vision=vision)
