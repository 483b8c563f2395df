# Generated from notebooks/11_training.ipynb: edit there, or here and run `make update`.
"""What lies under each patch of a picture: the first thing that the vision half learns.

Built in chapter 11, notebooks/11_training.ipynb.
"""

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from mllama_lite.local_vision import VisionConfig
from mllama_lite.small_model.scenes import COLOURS, KINDS, MAX_THINGS, Scene
from mllama_lite.tiles import choose_canvas, resized_size


# What the patch head says about each patch, and among how many answers it chooses.
PATCH_TARGETS = {
    "paper or thing": 2,
    "kind": len(KINDS),
    "colour": len(COLOURS),
    "from the left": MAX_THINGS,
    "from the top": MAX_THINGS,
    "column": 3,
    "row": 3,
}
PATCH_WEIGHTS = (1.0, 3.0, 1.0, 1.0, 1.0, 1.0, 1.0)  # kinds are the hardest to tell


def patch_targets(scene: Scene, config: VisionConfig) -> torch.Tensor:
    """What is under each patch of a scene: the truth that the scene was drawn from.

    Args:
        scene: Scene.
        config: VisionConfig.

    Returns:
        int [K·(P - 1), 7]: for every patch of every valid tile, in the order of
        PATCH_TARGETS, the answers for the thing that covers most of it; -100 where
        there is nothing to learn: no thing, or more things than are put in order.
    """
    width, height = scene.image.size
    tiles = image_to_canvas(scene.image, config)
    (rows, columns), (new_height, new_width) = tiles
    patch = config.patch_size
    side = config.image_size // patch
    targets = np.full((rows * side, columns * side, len(PATCH_TARGETS)), -100)
    targets[:, :, 0] = 0
    most = np.full(targets.shape[:2], 0.15)
    across = np.arange(columns * side) * patch
    down = np.arange(rows * side) * patch
    from_top = sorted(scene.things, key=lambda thing: thing.centre[1])
    few = len(scene.things) <= MAX_THINGS
    for i, thing in enumerate(scene.things):
        left, top, right, bottom = np.array(thing.box, dtype=float)
        inset = 0.12 * (right - left)
        xs = np.array([left + inset, right - inset]) * new_width / width
        ys = np.array([top + inset, bottom - inset]) * new_height / height
        covered_x = np.minimum(across + patch, xs[1]) - np.maximum(across, xs[0])
        covered_y = np.minimum(down + patch, ys[1]) - np.maximum(down, ys[0])
        share = covered_y.clip(0)[:, None] * covered_x.clip(0) / patch**2
        here = share > most
        most[here] = share[here]
        x, y = thing.centre
        targets[here] = (
            1,
            KINDS.index(thing.kind),
            list(COLOURS).index(thing.colour),
            i if few else -100,
            from_top.index(thing) if few else -100,
            min(int(3 * x / width), 2),
            min(int(3 * y / height), 2),
        )
    cut = targets.reshape(rows, side, columns, side, -1).transpose(0, 2, 1, 3, 4)
    return torch.from_numpy(cut.reshape(-1, len(PATCH_TARGETS)))


def image_to_canvas(
    image: Image.Image, config: VisionConfig
) -> tuple[tuple[int, int], tuple[int, int]]:
    """((rows, columns), (height, width)): an image's canvas and its size on it."""
    side = config.image_size
    canvas = choose_canvas(image.height, image.width, side, config.max_num_tiles)
    return canvas, resized_size(image.height, image.width, canvas, side)


class PatchHead(nn.Linear):
    """Says of each vision token what is under it; for training only, never shipped.

    Args:
        size: D of the projected vision tokens.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size, sum(PATCH_TARGETS.values()))

    def loss(self, vision: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of each target.

        Args:
            vision: [N, K, P, D] projected tokens of the valid tiles.
            targets: int [N, K·(P - 1), 7].

        Returns:
            fp32 [7].
        """
        logits = self(vision[:, :, 1:]).flatten(0, 2).float()  # [N·K·(P - 1), answers]
        parts = logits.split(list(PATCH_TARGETS.values()), dim=-1)
        wanted = targets.flatten(0, 1).unbind(-1)
        # Without a thing in the whole batch there is no mean; the sum is 0 then.
        return torch.stack(
            [
                F.cross_entropy(part, target, reduction="sum")
                / (target >= 0).sum().clamp(min=1)
                for part, target in zip(parts, wanted)
            ]
        )
