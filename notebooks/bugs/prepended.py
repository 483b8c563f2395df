"""Chapter 17: bugs of images that are tokens, and what notices them."""

import tempfile

import torch
import torch.nn.functional as F

import reference_prepended
from bugs import a_bug, a_check, replaced
from mllama_lite.decoder import LanguageModel, TextConfig
from mllama_lite.families import prepended, prepended_files, projectors
from mllama_lite.families.siglip import SiglipVision, SiglipVisionConfig
from mllama_lite.tiles import Tiles

WHOLE = "tests/test_prepended.py::test_whole_models"
TEXT = TextConfig(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    rope_scaling=None,
    cross_attention_layers=(),
    num_extra_embeddings=0,
)


@a_bug(
    "norm-behind-the-tower",
    "LLaVA's image tokens are taken behind the encoder's last norm, and not before it.",
    WHOLE,
)
def norm_behind_the_tower():
    right = SiglipVision.__init__

    def wrong(self, config, pooled=True, normed=True):
        right(self, config, pooled, normed=True)

    with replaced(SiglipVision.__init__, wrong):
        yield


@a_bug(
    "image-scaled-like-text",
    "Image tokens are multiplied by the root of the width, as Gemma does with its embeddings.",
    WHOLE,
)
def image_scaled_like_text():
    right = prepended.put_images

    def wrong(embeddings, places, images):
        return right(embeddings, places, images * embeddings.shape[-1] ** 0.5)

    with replaced(prepended.put_images, wrong):
        yield


@a_bug(
    "columns-before-rows",
    "Squares of patches are joined column by column: the channels come in another order.",
    WHOLE,
)
def columns_before_rows():
    right = projectors.pixel_shuffle

    def wrong(patches, factor):
        joined = right(patches, factor)
        squares = joined.unflatten(-1, (factor, factor, -1))
        return squares.transpose(2, 3).flatten(2)

    with replaced(projectors.pixel_shuffle, wrong):
        yield


@a_bug(
    "answer-in-the-prefix",
    "The tokens that see each other in both directions are those of the whole row, the answer "
    "among them.",
    "tests/test_prepended.py::test_prefix_mask",
)
def answer_in_the_prefix():
    right = prepended.prefix_mask

    def wrong(positions, num_keys, prefix):
        return right(positions, num_keys, torch.full_like(prefix, num_keys))

    with replaced(prepended.prefix_mask, wrong):
        yield


@torch.no_grad()
def relative_difference(kind):
    """Largest difference of ours from transformers' logits, as a share of the largest."""
    hub = reference_prepended.MAKERS[kind](1)
    with tempfile.TemporaryDirectory() as folder:
        hub.save_pretrained(folder)
        ours = prepended_files.load_prepended(folder)
    generator = torch.Generator().manual_seed(0)
    config, rows = ours.config, 2
    side = config.vision.image_size
    pixels = torch.randn(rows, 3, side, side, generator=generator)
    text = torch.randint(config.text.vocab_size - 1, (rows, 8), generator=generator)
    slots = torch.full((rows, config.tokens_per_tile), config.image_token_index)
    tokens = torch.cat([slots, text], dim=1)
    prompt = tokens.shape[1] - 4
    wanted = reference_prepended.hub_logits(hub, tokens, pixels, prompt)
    images = ours.encode_images([Tiles(one[None], 1, (1, 1)) for one in pixels])
    mask = None
    if config.prefix:
        here = torch.arange(tokens.shape[1]).expand(rows, -1)
        prefix = torch.full((rows,), prompt)
        mask = prepended.prefix_mask(here, tokens.shape[1], prefix)
    found = ours(tokens, mask=mask, vision=torch.cat(images))
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@a_check("shapes of what each projector makes")
def shapes():
    patches = torch.randn(2, 16, 12)
    for projector, count in (
        (projectors.LinearProjector(12, 32), 16),
        (projectors.MLPProjector(12, 32), 16),
        (projectors.PoolingProjector(12, 32, 4), 4),
        (projectors.ShuffleProjector(12, 32, 2), 4),
    ):
        assert projector(patches).shape == (2, count, 32)


@a_check("pixel shuffle: nothing is lost")
def nothing_is_lost():
    patches = torch.randn(2, 16, 12)
    joined = projectors.pixel_shuffle(patches, 2)
    assert torch.equal(joined.flatten().sort()[0], patches.flatten().sort()[0])


@a_check("LLaVA's logits, and transformers'")
def llava():
    assert relative_difference("llava") < 2e-5


@a_check("PaliGemma's logits, and transformers'")
def paligemma():
    assert relative_difference("paligemma") < 2e-5


@a_check("Idefics3's logits, and transformers'")
def idefics3():
    assert relative_difference("idefics3") < 2e-5


@a_check("the loss falls in training, all parts together, with a prefix")
@torch.enable_grad()
def loss_falls():
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
    )
    config = prepended.PrependedConfig(TEXT, vision, 39, 4, prefix=True)
    model = prepended.Prepended(
        config,
        SiglipVision(vision, pooled=False, normed=False),
        projectors.ShuffleProjector(16, 32, 2),
    )
    optimiser, losses = torch.optim.AdamW(model.parameters(), 3e-3), []
    pixels, text = torch.randn(4, 3, 16, 16), torch.randint(39, (4, 8))
    tokens = torch.cat([torch.full((4, 4), 39), text], dim=1)
    here, prefix = torch.arange(12).expand(4, -1), torch.full((4,), 7)
    for _ in range(30):
        images = model.encode_images([Tiles(one[None], 1, (1, 1)) for one in pixels])
        mask = prepended.prefix_mask(here, 12, prefix)
        logits = model(tokens, mask=mask, vision=torch.cat(images))[:, 6:-1]
        losses.append(F.cross_entropy(logits.flatten(0, 1), tokens[:, 7:].flatten()))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.7 * losses[0]


@a_check("no token of an answer changes a logit before it")
@torch.no_grad()
def answers_are_causal():
    torch.manual_seed(0)
    model = LanguageModel(TEXT)
    tokens = torch.randint(40, (1, 12))
    other = tokens.clone()
    other[0, 9] = (other[0, 9] + 1) % 40
    here, prefix = torch.arange(12)[None], torch.tensor([6])
    mask = prepended.prefix_mask(here, 12, prefix)
    change = (model(tokens, mask=mask) - model(other, mask=mask)).abs()
    assert change[0, :9].max() == 0
