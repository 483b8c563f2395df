"""Pictures of one thing each with their names, and a small SigLIP that learns from such pairs.

For chapter 17. Its weights, notebooks/measured/siglip.safetensors, are those that
benchmarks/siglip.py trained; what it learns in a few seconds the chapter shows by itself.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from mllama_lite.families.siglip import (
    Siglip,
    SiglipTextConfig,
    SiglipVisionConfig,
    sigmoid_loss,
)
from mllama_lite.resumable import NOTE_EVERY, Resumable, decayed
from mllama_lite.small_model.scenes import COLOURS, KINDS, draw_scene, load_masks

SIDE = 32  # pixels
NAMES = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS]
WORDS = ["", *COLOURS, *KINDS]  # token 0 is padding
WEIGHTS = Path(__file__).parent / "measured" / "siglip.safetensors"


def tokens_of(names):
    """int [n, 3]: the two words of each name and padding."""
    return torch.tensor([[*map(WORDS.index, name.split()), 0] for name in names])


def pictures(split, count, seed):
    """Pictures of one thing each.

    Args:
        split: of the scans, see `load_masks`.
        count: n.
        seed: of the random numbers.

    Returns:
        (pixels fp32 [n, 3, 32, 32], each from -1 to 1; int [n], indices of NAMES).
    """
    rng, masks = np.random.default_rng(seed), load_masks(split)
    images, names = [], []
    while len(images) < count:
        scene = draw_scene(rng, masks, 1, canvas=(1, 1))
        if not scene.things:
            continue
        small = scene.image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        images.append(np.asarray(small.convert("RGB")))
        names.append(NAMES.index(scene.things[0].name))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return pixels.float() / 127.5 - 1, torch.tensor(names)


def new_siglip(seed=0):
    """A SigLIP of 220,000 parameters for pictures of 32 pixels in patches of 8."""
    torch.manual_seed(seed)
    vision = SiglipVisionConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=8,
    )
    text = SiglipTextConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=3,
        projection_size=64,
    )
    return Siglip(vision, text)


def trained_siglip():
    """The one that ships, in fp32."""
    model = new_siglip()
    state = {name: t.float() for name, t in load_file(WEIGHTS).items()}
    model.load_state_dict(state)
    return model.eval()


class PairTrainer(Resumable):
    """A small SigLIP in training.

    Args:
        pixels, names: from `pictures`.
        steps: how many there will be.
        batch: pairs of a step, each with another name.
        rate: learning rate; it rises over 50 steps and falls over the last half.
        seed: of first values and batches.
    """

    def __init__(self, pixels, names, steps, batch=64, rate=2e-3, seed=0):
        self.pixels, self.batch, self.rate, self.seed = pixels, batch, rate, seed
        self.places = [(names == i).nonzero()[:, 0] for i in range(len(NAMES))]
        self.tokens = tokens_of(NAMES)
        self.model = new_siglip(seed)
        optimiser = torch.optim.AdamW(
            decayed(dict(self.model.named_parameters())), weight_decay=0.05, fused=True
        )
        settings = {
            "steps": steps,
            "batch": batch,
            "rate": rate,
            "seed": seed,
            "pictures": len(pixels),
        }
        super().__init__(settings, steps, {"model": self.model}, optimiser, 2)

    def train_step(self):
        """Learn from pairs with different names. Returns the loss."""
        rng = np.random.default_rng([self.seed, self.step])
        chosen = rng.permutation(len(NAMES))[: self.batch]
        rows = [self.places[i][rng.integers(len(self.places[i]))] for i in chosen]
        logits = self.model(self.pixels[torch.stack(rows)], self.tokens[chosen])
        loss = sigmoid_loss(logits)
        left = 2 * (self.steps - self.step) / self.steps
        self.learn(loss, self.rate * min(1, (self.step + 1) / 50, left))
        self.sums += torch.stack([torch.ones(()), loss.detach()])
        if self.step % NOTE_EVERY == 0:
            count, total = self.sums.tolist()
            self.history.append({"step": self.step, "loss": total / count})
            self.sums.zero_()
        return loss.detach()


@torch.no_grad()
def right_names(model, pixels, names):
    """(share of pictures whose own name of all 84 fits best, and whose colour is right)."""
    found = model(pixels, tokens_of(NAMES)).argmax(dim=1)
    colours = torch.tensor([list(COLOURS).index(name.split()[0]) for name in NAMES])
    share = (found == names).float().mean().item()
    return share, (colours[found] == colours[names]).float().mean().item()
