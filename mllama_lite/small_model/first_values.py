# Generated from notebooks/11_training.ipynb: edit there, or here and run `make update`.
"""A small model before its training: vocabulary, sizes, first values.

Built in chapter 11, notebooks/11_training.ipynb.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.decoder import TextConfig
from mllama_lite.global_vision import VisionModel
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import Mllama, MllamaConfig
from mllama_lite.small_model.questions import SIDES, THIRDS, UNKNOWN, WORDINGS
from mllama_lite.small_model.scenes import COLOURS, KINDS
from mllama_lite.tiles import canvases
from mllama_lite.tokenizer import NUM_SPECIAL_TOKENS, SPLIT_PATTERN, train_bpe


def make_ranks() -> dict[bytes, int]:
    """A small vocabulary for Llama 3's tokenizer, learned from the questions.

    Returns:
        dict from a token's bytes to its rank, see `train_bpe`: every word of the
        questions and answers is one token.
    """
    import regex  # tiktoken needs it too

    things = [f"{colour} {kind}" for colour in COLOURS for kind in KINDS]
    orders = ["from left to right", "from top to bottom"]
    slots = {
        "colour": list(COLOURS),
        "thing": things,
        "things": ["things", "objects", "digits", "numbers", "shapes"],
        "order": orders,
        "side": list(SIDES),
        "a": ["a", "an"],
    }
    lines = ["user", "assistant", "system", "\n\n", "yes", "no", "nothing", UNKNOWN]
    lines += [place for row in THIRDS for place in row]
    lines += [*things, ", ".join(things)]
    for trained, _ in WORDINGS.values():
        for wording in trained:
            for i in range(12):
                filled = {name: words[i % len(words)] for name, words in slots.items()}
                lines.append(wording.format(**filled))
    words = [w.encode() for line in lines for w in regex.findall(SPLIT_PATTERN, line)]
    # Twice, so that every word becomes one token: merging ends at what occurs once.
    return train_bpe(words * 2, 1000)


def small_config(vocab_size: int) -> MllamaConfig:
    """Sizes of the small model: the 11B's structure, but RoPE is not stretched.

    Args:
        vocab_size: W of its tokenizer.

    Returns:
        MllamaConfig.
    """
    text = TextConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        rope_theta=10000.0,
        rope_scaling=None,
        max_position_embeddings=1024,
        cross_attention_layers=(1, 3, 5),
    )
    vision = VisionConfig(
        hidden_size=128,
        attention_heads=4,
        intermediate_size=512,
        num_hidden_layers=4,
        num_global_layers=2,
        image_size=56,
        intermediate_layers_indices=(1, 3),
    )
    first = vocab_size - NUM_SPECIAL_TOKENS
    return MllamaConfig(text, vision, vocab_size, (first + 1, first + 8, first + 9))


def sine_table(places: torch.Tensor, size: int) -> torch.Tensor:
    """Sines and cosines of places in a plane, at several wavelengths.

    Args:
        places: fp32 [..., 2].
        size: D, a multiple of 4.

    Returns:
        fp32 [..., D].
    """
    rates = 0.5 ** torch.arange(size // 4).mul(8 / (size // 4)) * math.pi / 2
    angles = (places[..., None] * rates).flatten(-2)  # [..., D/2]
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@torch.no_grad()
def initialise(model: Mllama, seed: int = 0, gate: float = 0.3) -> None:
    """Give a new model its first values.

    Matrices are normal with variance 1 / inputs; those that write to the residual
    stream are made smaller by the number of their kind. Positions begin as sines, so
    that neighbours are alike from the start. Gates begin a little open: with both sides
    untrained there is nothing to protect, and a closed gate lets no gradient through to
    what is behind it.

    Args:
        model: Mllama.
        seed: of the random numbers.
        gate: first value of every gate.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(parameter: torch.Tensor, std: float) -> None:
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    text, vision = model.config.text, model.config.vision
    assert vision is not None
    depth = {
        "language_model": 2 * text.num_hidden_layers,
        "vision_model": 2 * (vision.num_hidden_layers + vision.num_global_layers),
    }
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            fan_in = module.weight[0].numel()
            writes = name.endswith(("o_proj", "down_proj", "fc2"))
            shrink = depth[name.split(".")[0]] ** -0.5 if writes else 1.0
            normal(module.weight, fan_in**-0.5 * shrink)
            if module.bias is not None:
                module.bias.zero_()
    for name, parameter in model.named_parameters():
        if parameter.numel() == 1 and "gate" in name:
            parameter.fill_(gate)
    normal(model.language_model.model.embed_tokens.weight, text.hidden_size**-0.5)
    encoder, size = model.vision_model, vision.hidden_size
    # Filters of patches begin smooth, as strokes are, and almost blind to plain paper.
    patch = encoder.patch_embedding.weight  # [D, 3, side, side]
    coarse = torch.randn(*patch.shape[:2], 5, 5, generator=generator)
    smooth = F.interpolate(coarse, patch.shape[2:], mode="bicubic", align_corners=True)
    smooth = smooth - 0.9 * smooth.mean(dim=(2, 3), keepdim=True)
    patch.copy_(smooth / smooth.std() * 1.5 * patch[0].numel() ** -0.5)
    normal(encoder.class_embedding, 1.0)
    side = vision.image_size // vision.patch_size
    grid = torch.cartesian_prod(*[torch.arange(side).float()] * 2)  # [P - 1, 2]
    inside = encoder.gated_positional_embedding
    inside.embedding[1:] = sine_table(grid, size)
    normal(inside.embedding[0], 0.5)
    for name in ("pre_tile_positional_embedding", "post_tile_positional_embedding"):
        normal(getattr(encoder, name).embedding.weight, 0.3)
    # Row i of the tables belongs to canvas i; its tiles lie side by side.
    for i, (rows, columns) in enumerate(canvases(vision.max_num_tiles), start=1):
        table = inside.tile_embedding.weight[i].view(inside.shape)  # [K, P, D]
        tiles = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
        for tile, corner in zip(table, tiles.float()):
            tile[1:] = sine_table(grid + corner * side, size)
            tile[0] = sine_table(corner * side + (side - 1) / 2, size)
    for module in encoder.modules():
        if isinstance(module, nn.Embedding):
            places = tile_places(vision.max_num_tiles)
            parts = module.weight.view(*places.shape, -1)  # [canvases + 1, K, ...]
            first = {place: i for i, place in enumerate(places.flatten().tolist())}
            same = torch.tensor([first[place] for place in places.flatten().tolist()])
            parts.copy_(parts.flatten(0, 1)[same].view_as(parts))
            parts[places < 0] = 0


def tile_places(max_tiles: int) -> torch.Tensor:
    """Where on its canvas each entry of a table by aspect_ratio_id lies.

    Args:
        max_tiles: K.

    Returns:
        int [canvases + 1, K]: K·row + column; -1 for tiles that a canvas does not have.
    """
    options = canvases(max_tiles)
    places = torch.full((len(options) + 1, max_tiles), -1)
    for i, (rows, columns) in enumerate(options, start=1):
        for tile in range(rows * columns):
            places[i, tile] = max_tiles * (tile // columns) + tile % columns
    return places


def share_places(vision_model: VisionModel) -> None:
    """Keep the vectors of one place alike on all canvases while they are trained.

    Meta's code has one vector for each row and column, and the hub's table repeats it
    for every canvas. Entries that begin alike and get the same gradient stay alike; apart,
    they would make a model that Meta's code cannot hold.

    Args:
        vision_model: VisionModel, initialised; its tables get a hook.
    """
    places = tile_places(vision_model.config.max_num_tiles)
    known = places.clamp(min=0).flatten()  # [(canvases + 1)·K]
    valid = (places >= 0).flatten()[:, None]

    def shared(gradient: torch.Tensor) -> torch.Tensor:
        here, there = valid.to(gradient.device), known.to(gradient.device)
        parts = gradient.unflatten(1, (places.shape[1], -1)).flatten(0, 1) * here
        sums = parts.new_zeros(int(known.max()) + 1, parts.shape[1])
        sums.index_add_(0, there, parts)
        return (sums[there] * here).view_as(gradient)

    for module in vision_model.modules():
        if isinstance(module, nn.Embedding):
            module.weight.register_hook(shared)
