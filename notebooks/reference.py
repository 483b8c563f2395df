"""Meta's own code and transformers, run on a CPU as witnesses.

For checking only: nothing in mllama_lite imports this. Meta's reference is the PyPI
package llama-models; it is written for GPUs and model parallelism, so a little is
arranged around it here, and nothing inside it is changed.
"""

import contextlib
import math
import random
import warnings
from pathlib import Path

import torch

from mllama_lite.checkpoints.configs import config_to_hub
from mllama_lite.checkpoints.names import meta_conversions
from mllama_lite.decoder import TextConfig
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import Mllama, MllamaConfig
from mllama_lite.rope import RopeScaling


def import_torchvision():
    """Import torchvision, also where its compiled operators do not fit torch's build.

    Beside a CPU build of torch they may be missing; then it cannot be imported, and neither
    can Meta's code and transformers. Both only resize images with it, which needs none of
    the operators, so it is enough that those it asks for are declared. Where they load,
    nothing is declared: a second declaration would end the process.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in ("nms", "qnms", "roi_align"):
            if not hasattr(torch.ops.torchvision, name):
                library = torch.library.Library("torchvision", "FRAGMENT")
                library.define(f"{name}() -> ()")
                _declared.append(library)
        import torchvision  # noqa: F401


_declared = []  # torch forgets the operators of a library that is garbage-collected
import_torchvision()


def start_meta():
    """Make Meta's code importable and its model parallelism a group of one."""
    import torch.distributed as dist

    # Meta's code uses names of torch.distributed that are being replaced.
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="llama_models|fairscale"
    )
    import fairscale.nn.model_parallel.initialize as parallel

    if not dist.is_initialized():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        with contextlib.redirect_stdout(None):
            parallel.initialize_model_parallel(1)


def tokenizer_path():
    """Meta's real tokenizer file, which the package llama-models carries."""
    import llama_models.llama3

    return Path(llama_models.llama3.__file__).with_name("tokenizer.model")


def fill(module, seed=0, scale=1.0):
    """Give every parameter random values, none zero: gates, norms and biases too.

    Matrices get the usual 1/sqrt(inputs); everything else spreads around its neutral
    value. A gate of 0 would hide the whole vision path from a comparison.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            noise[noise == 0] = 0.5  # fp32 has few enough numbers for it to happen
            if parameter.numel() == 1 and "gate" in name:
                parameter.copy_(0.5 + 0.5 * noise.abs())
            elif (
                "norm" in name
                and name.endswith("weight")
                or ".ln_" in name
                and name.endswith("weight")
            ):
                parameter.copy_(1 + 0.2 * noise)
            elif parameter.ndim == 2 and "embed" not in name:
                parameter.copy_(noise * scale * parameter.shape[1] ** -0.5)
            else:
                parameter.copy_(0.5 * noise)
    return module


def meta_args(config, max_seq_len):
    """Meta's ModelArgs for a configuration of ours."""
    from llama_models.llama3.args import ModelArgs

    text, vision = config.text, config.vision
    return ModelArgs(
        dim=text.hidden_size,
        n_layers=len(text.self_attention_layers),
        n_heads=text.num_attention_heads,
        n_kv_heads=text.num_key_value_heads,
        vocab_size=text.vocab_size,
        # Meta computes the width of the MLP and rounds it up: half of ours becomes ours.
        multiple_of=text.intermediate_size,
        ffn_dim_multiplier=text.intermediate_size / (16 * text.hidden_size / 3),
        norm_eps=text.rms_norm_eps,
        rope_theta=text.rope_theta,
        use_scaled_rope=text.rope_scaling is not None,
        max_seq_len=max_seq_len,
        max_batch_size=8,
        vision_chunk_size=vision.image_size if vision else -1,
        vision_max_num_chunks=4,
        vision_num_cross_attention_layers=max(len(text.cross_attention_layers), 1),
    )


def meta_model(config, max_seq_len=64, seed=0, batch=8, dtype=torch.float32):
    """Meta's CrossAttentionTransformer at the sizes of `config`, filled at random.

    Width, depth and kept states of the vision encoder are constants in Meta's code, and
    so is the spacing of cross-attention layers; both are set from outside.

    Args:
        config: MllamaConfig with images.
        max_seq_len: length of the cache.
        seed: of the random parameters.
        batch: rows of the cache.
        dtype: of parameters and cache.

    Returns:
        the module, caches set up.
    """
    start_meta()
    from llama_models.llama3.multimodal import model as meta

    text, vision = config.text, config.vision
    args = meta_args(config, max_seq_len)

    class Vision(meta.CrossAttentionTransformerVision):
        def __init__(self, args):
            torch.nn.Module.__init__(self)
            self.image_res, self.max_num_chunks = vision.image_size, 4
            self.patch_size = vision.patch_size
            self.vision_encoder = meta.VisionEncoder(
                max_num_tiles=4,
                image_size=vision.image_size,
                patch_size=vision.patch_size,
                width=vision.hidden_size,
                layers=vision.num_hidden_layers,
                heads=vision.attention_heads,
                mlp_ratio=vision.intermediate_size / vision.hidden_size,
                n_global_layers=vision.num_global_layers,
                global_model=True,
                return_intermediate=list(vision.intermediate_layers_indices),
            )
            self.vision_projection = meta.ColumnParallelLinear(
                vision.vision_output_dim, args.dim, bias=True, init_method=lambda x: x
            )

    class Text(meta.CrossAttentionTransformerText):
        def _init_fusion_schedule(self, num_layers):
            return [
                i - already for already, i in enumerate(text.cross_attention_layers)
            ]

    before = meta.CrossAttentionTransformerVision, meta.CrossAttentionTransformerText
    meta.CrossAttentionTransformerVision, meta.CrossAttentionTransformerText = (
        Vision,
        Text,
    )
    try:
        with default_dtype(dtype):
            model = meta.CrossAttentionTransformer(args)
            fill(model, seed)
            model.setup_cache(batch, torch.device("cpu"), dtype)
    finally:
        meta.CrossAttentionTransformerVision, meta.CrossAttentionTransformerText = (
            before
        )
    return model.eval()


@contextlib.contextmanager
def default_dtype(dtype):
    """Meta's code takes several dtypes from torch's default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def ours_from_meta(meta, config):
    """Our model with the parameters of Meta's, by the recipes that loading uses."""
    ours = Mllama(config).to(next(meta.parameters()).dtype)
    stored = meta.state_dict()
    recipes = meta_conversions({n: p.shape for n, p in ours.named_parameters()}, config)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            recipe = recipes[name]
            value = torch.cat([stored[source] for source, _ in recipe.sources])
            parameter.copy_(recipe.convert(value) if recipe.convert else value)
    return ours.eval()


@torch.no_grad()
def meta_from_ours(ours, max_seq_len=64, batch=8):
    """Meta's model with the parameters of ours: the recipes of loading, turned round.

    A recipe only moves and repeats numbers. Applied to the numbers 1, 2, 3, ... it
    tells where each one goes, and so where each one comes from.

    Args:
        ours: Mllama with images.
        max_seq_len, batch: see `meta_model`.

    Returns:
        the module, caches set up.

    Raises:
        AssertionError: ours holds something for which Meta's model has no place, such
            as another vector for the same tile on another canvas.
    """
    meta = meta_model(ours.config, max_seq_len, batch=batch, dtype=ours.dtype)
    stored = meta.state_dict()
    recipes = meta_conversions(
        {n: p.shape for n, p in ours.named_parameters()}, ours.config
    )
    for name, parameter in ours.named_parameters():
        recipe, row = recipes[name], 0
        for source, shape in recipe.sources:
            if recipe.convert is None:
                end = row + shape[0] if len(recipe.sources) > 1 else None
                stored[source].copy_(parameter[row:end].view(shape))
                row = end
                continue
            places = torch.arange(1, math.prod(shape) + 1).view(shape)
            places = recipe.convert(places).flatten()
            known = places > 0  # 0: places of tiles that a canvas does not have
            stored[source].view(-1)[places[known] - 1] = parameter.flatten()[known]
            assert torch.equal(recipe.convert(stored[source]), parameter), name
    return meta


@torch.no_grad()
def meta_logits(model, rows, images, total_len=None, steps=None):
    """Logits of Meta's model for a batch, the way its `generate` calls it.

    Args:
        model: from `meta_model`.
        rows: list of lists of token ids, images as the first id beyond the vocabulary.
        images: for each row, the list of its PIL images (RGB).
        total_len: length that the masks are made for; None for the longest row.
        steps: positions at which the sequence is cut into separate calls, so that the
            caches are used; None for one call.

    Returns:
        fp32 [B, T, W]; shorter rows are padded on the right with token 0.
    """
    from llama_models.llama3.chat_format import create_vision_mask

    image_id = model.params.vocab_size
    length = max(len(row) for row in rows)
    tokens = torch.zeros(len(rows), length, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = torch.tensor(row)
    masks = [create_vision_mask(row, image_id) for row in rows]
    with default_dtype(next(model.parameters()).dtype):
        caches, cross, rows_seen = model.compute_vision_tokens_masks(
            images, masks, total_len or length, torch.device("cpu")
        )
        cuts = [0, *(steps or []), length]
        parts = [
            model.forward(
                torch.arange(a, b), tokens, cross, rows_seen, caches, not any(images)
            )
            for a, b in zip(cuts, cuts[1:])
        ]
    return torch.cat(parts, dim=1)


def random_config(seed):
    """A small configuration: heads, depths, widths, layers, tile grids all vary."""
    rng = random.Random(seed)
    kv_heads = rng.choice([1, 2, 3, 4])
    heads = kv_heads * rng.choice([1, 2, 3, 4])
    head_dim = rng.choice([8, 16, 24])
    num_self = rng.randint(2, 5)
    # Meta puts a cross layer before a self layer, at most one before each.
    before = sorted(rng.sample(range(num_self), rng.randint(1, min(3, num_self))))
    cross = tuple(i + already for already, i in enumerate(before))
    vision_heads = rng.choice([1, 2, 4])
    vision_layers = rng.randint(2, 5)
    kept = sorted(
        rng.sample(range(vision_layers), rng.randint(1, min(5, vision_layers)))
    )
    patch = rng.choice([4, 7, 14])
    text = TextConfig(
        vocab_size=rng.choice([64, 100, 257]),
        hidden_size=heads * head_dim,
        intermediate_size=rng.choice([40, 64, 104]),
        num_hidden_layers=num_self + len(cross),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        rms_norm_eps=rng.choice([1e-5, 1e-6]),
        rope_theta=rng.choice([1e4, 5e5]),
        rope_scaling=rng.choice([None, RopeScaling()]),
        cross_attention_layers=cross,
    )
    vision_width = vision_heads * rng.choice([8, 16])
    vision = VisionConfig(
        hidden_size=vision_width,
        attention_heads=vision_heads,
        intermediate_size=vision_width * rng.choice([2, 4]),
        num_hidden_layers=vision_layers,
        num_global_layers=rng.randint(1, 3),
        image_size=patch * (2 + seed % 7),  # grids of 2 to 8 patches a side
        patch_size=patch,
        intermediate_layers_indices=tuple(kept),
    )
    return MllamaConfig(text, vision, image_token_index=text.vocab_size)


def hub_model(ours, corrected=True):
    """transformers' Mllama with the parameters of ours.

    Args:
        ours: Mllama.
        corrected: repair the two places where transformers differs from Meta: the
            vision states are kept after their blocks instead of before, and tokens that
            see no image keep their attention output.

    Returns:
        MllamaForConditionalGeneration in evaluation mode.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    document = config_to_hub(ours.config, ours.dtype)
    config = transformers.MllamaConfig(**document)
    config._attn_implementation = "sdpa"
    model = transformers.MllamaForConditionalGeneration(config)
    renamed = {}
    for name, value in ours.state_dict().items():
        name = name.replace("language_model.lm_head", "lm_head")
        name = name.replace("language_model.model.", "model.language_model.")
        for part in ("vision_model", "multi_modal_projector"):
            name = f"model.{name}" if name.startswith(part) else name
        renamed[name] = value
    model.load_state_dict(renamed)
    model = model.to(ours.dtype).eval()
    return correct(model) if corrected else model


def correct(model):
    """Repair the two deviations from Meta in a model of transformers; see `hub_model`."""
    model.model.vision_model.transformer.register_forward_hook(_states_before)
    for layer in model.model.language_model.layers:
        if hasattr(layer, "cross_attn"):
            layer.register_forward_pre_hook(_remember_rows, with_kwargs=True)
            layer.cross_attn.register_forward_hook(_zero_rows)
            layer.cross_attn.layer = [layer]
    return model


def _states_before(encoder, args, output):
    """State i becomes the one that enters block i; the first was not kept at all."""
    output.hidden_states = (args[0], *output.hidden_states)
    return output


def _remember_rows(layer, args, kwargs):
    layer.rows = kwargs.get("full_text_row_masked_out_mask")


def _zero_rows(attention, args, output):
    rows = attention.layer[0].rows
    hidden, *rest = output
    return (hidden if rows is None else hidden * rows[:, 0], *rest)


def compare(ours, theirs, limit):
    """Print the largest absolute difference of two tensors and fail above the limit."""
    if ours.shape != theirs.shape:
        raise AssertionError(
            f"shapes differ: {tuple(ours.shape)} and {tuple(theirs.shape)}"
        )
    largest = (ours.detach().double() - theirs.detach().double()).abs().max().item()
    print(f"largest difference {largest:.1e} (limit {limit:.0e})")
    if not largest <= limit:  # also when it is NaN
        raise AssertionError(
            f"the largest difference is {largest:.3e}, the limit {limit:.0e}"
        )


@torch.no_grad()
def hub_logits(model, row, images):
    """Logits of transformers' Mllama for one row of token ids and its PIL images.

    The tensors are those that its processor makes; chapter 5 compares the pixels.

    Returns:
        fp32 [T, W].
    """
    from transformers.models.mllama.processing_mllama import (
        convert_sparse_cross_attention_mask_to_dense,
        get_cross_attention_token_mask,
    )

    from mllama_lite.tiles import image_to_tiles

    tokens = torch.tensor([row])
    inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if images:
        side = model.config.vision_config.image_size
        tiles = [image_to_tiles(image, side) for image in images]
        counts = [tile.num_tiles for tile in tiles]
        ranges = get_cross_attention_token_mask(row, model.config.image_token_index)
        mask = convert_sparse_cross_attention_mask_to_dense(
            [ranges], [counts], 4, len(row)
        )
        pixels = torch.stack([tile.pixel_values for tile in tiles])[None]
        inputs |= {
            "pixel_values": pixels.to(model.dtype),
            "aspect_ratio_ids": torch.tensor(
                [[tile.aspect_ratio_id for tile in tiles]]
            ),
            "aspect_ratio_mask": torch.tensor(
                [[[int(k < n) for k in range(4)] for n in counts]]
            ),
            "cross_attention_mask": torch.tensor(mask),
        }
    return model(**inputs).logits[0].float()
