"""Images as tokens: SigLIP, projectors, and whole models, against transformers."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import reference_prepended
from mllama_lite.errors import InputError
from mllama_lite.families.prepended import PrependedSession, prefix_mask, with_slots
from mllama_lite.families.prepended_files import load_prepended
from mllama_lite.families.projectors import PoolingProjector, pixel_shuffle
from mllama_lite.families.siglip import (
    Siglip,
    SiglipTextConfig,
    SiglipVisionConfig,
    sigmoid_loss,
)
from mllama_lite.generation import generate
from mllama_lite.tiles import Tiles

SEEDS = range(12)


def largest(a, b):
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


def fields(config, like):
    return {name: getattr(config, name) for name in like if hasattr(config, name)}


def ours_siglip(hub):
    vision, text = (
        kind(**fields(config, kind.__annotations__))
        for kind, config in (
            (SiglipVisionConfig, hub.config.vision_config),
            (SiglipTextConfig, hub.config.text_config),
        )
    )
    model = Siglip(vision, text)
    model.load_state_dict(hub.state_dict())
    return model.eval()


def test_siglip(proof):
    images, texts, losses = 0.0, 0.0, 0.0
    for seed in SEEDS:
        hub = reference_prepended.siglip(seed)
        ours, generator = ours_siglip(hub), torch.Generator().manual_seed(seed)
        side = hub.config.vision_config.image_size
        pixels = torch.randn(3, 3, side, side, generator=generator)
        vocab = hub.config.text_config.vocab_size
        tokens = torch.randint(vocab, (3, 8), generator=generator)
        found = hub(input_ids=tokens, pixel_values=pixels, return_loss=True)
        patches = hub.vision_model(pixels).last_hidden_state
        images = max(images, largest(ours.vision_model(pixels), patches))
        logits = ours(pixels, tokens)
        texts = max(texts, largest(logits, found.logits_per_image))
        losses = max(losses, largest(sigmoid_loss(logits), found.loss))
    many = "12 random configurations x 3 images"
    proof("SigLIP: patches", "transformers", many, images, 2e-5)
    proof("SigLIP: images against texts", "transformers", many, texts, 2e-5)
    proof("SigLIP: sigmoid loss", "transformers", many, losses, 2e-5)


def test_sigmoid_loss_by_hand():
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]])
    total = 0.0
    for i in range(2):
        for j in range(2):
            chance = logits[i, j].sigmoid()
            total -= (chance if i == j else 1 - chance).log().item()
    assert abs(sigmoid_loss(logits).item() - total / 2) < 1e-6


def test_pooling_projector(proof):
    worst = 0.0
    for seed in SEEDS:
        vision, _ = reference_prepended.sizes(seed)
        side = vision["image_size"] // vision["patch_size"]
        few, size = 1 if side == 2 else 4, vision["hidden_size"]
        hub = reference_prepended.pooling_projector(side**2, size, 32, few, seed)
        ours = PoolingProjector(vision["hidden_size"], 32, few)
        ours.load_state_dict(hub.state_dict())
        patches = torch.randn(2, side**2, vision["hidden_size"])
        worst = max(worst, largest(ours(patches), hub(patches)))
    proof("Projector that pools", "transformers, Gemma 3's", "12 sizes", worst, 2e-5)


def test_pixel_shuffle(proof):
    from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector
    from transformers.models.llama4.modeling_llama4 import pixel_shuffle as of_llama4

    worst = 0.0
    for side, factor in ((4, 2), (6, 3), (8, 2), (8, 4)):
        patches = torch.randn(2, side * side, 5)
        ours = pixel_shuffle(patches, factor)
        theirs = Idefics3Connector.pixel_shuffle(None, patches, factor)
        worst = max(worst, largest(ours, theirs))
        worst = max(worst, largest(ours, of_llama4(patches, 1 / factor)))
        square = patches.view(2, side, side, 5)[:, :factor, :factor].reshape(2, -1)
        assert torch.equal(ours[:, 0], square)
    proof("Pixel shuffle", "transformers, Idefics3's and Llama 4's", "4", worst, 0)
    with pytest.raises(ValueError, match="no multiple"):
        pixel_shuffle(torch.zeros(1, 9, 4), 2)
    with pytest.raises(ValueError, match="no square"):
        pixel_shuffle(torch.zeros(1, 17, 4), 2)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """By kind and seed: transformers' model, and ours read from what it wrote."""
    found = {}
    for kind, make in reference_prepended.MAKERS.items():
        for seed in range(6):
            folder = tmp_path_factory.mktemp(f"{kind}{seed}")
            hub = make(seed)
            shards = {"max_shard_size": "60KB"} if seed % 2 else {}
            hub.save_pretrained(folder, **shards)
            found[kind, seed] = hub, load_prepended(folder), folder
    return found


def prompts(model, seed, rows=3, text=9):
    """Rows of tokens with an image each, its pixels, and how long the prompt is."""
    generator = torch.Generator().manual_seed(seed)
    side = model.config.vision.image_size
    pixels = torch.randn(rows, 3, side, side, generator=generator)
    vocab, image = model.config.text.vocab_size, model.config.image_token_index
    before = torch.randint(vocab - 1, (rows, 2), generator=generator)
    after = torch.randint(vocab - 1, (rows, text), generator=generator)
    slots = torch.full((rows, model.config.tokens_per_tile), image)
    tokens = torch.cat([before, slots, after], dim=1)
    return tokens, pixels, tokens.shape[1] - 4


def ours_logits(model, tokens, pixels, prompt):
    images = model.encode_images([Tiles(one[None], 1, (1, 1)) for one in pixels])
    mask = None
    if model.config.prefix:
        here = torch.arange(tokens.shape[1]).expand(len(tokens), -1)
        prefix = torch.full((len(tokens),), prompt)
        mask = prefix_mask(here, tokens.shape[1], prefix)
    return model(tokens, mask=mask, vision=torch.cat(images))


@pytest.mark.parametrize("kind", reference_prepended.MAKERS)
def test_whole_models(saved, kind, proof):
    worst = 0.0
    for seed in range(6):
        hub, ours, folder = saved[kind, seed]
        assert (folder / "model.safetensors.index.json").is_file() == bool(seed % 2)
        tokens, pixels, prompt = prompts(ours, seed)
        wanted = reference_prepended.hub_logits(hub, tokens, pixels, prompt)
        found = ours_logits(ours, tokens, pixels, prompt)
        worst = max(worst, largest(found, wanted) / wanted.abs().max().item())
    name = {"llava": "LLaVA", "paligemma": "PaliGemma", "idefics3": "Idefics3"}[kind]
    many = "6 random configurations, half of them in shards"
    proof(f"{name}: logits, relative to the largest", "transformers", many, worst, 2e-5)


def test_llava_takes_an_earlier_layer(tmp_path, proof):
    worst = 0.0
    for seed in range(4):
        hub = reference_prepended.llava(seed, layer=-2)
        hub.save_pretrained(tmp_path / str(seed))
        ours = load_prepended(tmp_path / str(seed))
        tokens, pixels, prompt = prompts(ours, seed)
        wanted = reference_prepended.hub_logits(hub, tokens, pixels, prompt)
        worst = max(worst, largest(ours_logits(ours, tokens, pixels, prompt), wanted))
    proof("LLaVA: logits, last layer but one", "transformers", "4", worst, 2e-5)


@pytest.mark.parametrize("kind", reference_prepended.MAKERS)
def test_a_session_goes_on_as_whole_passes_do(saved, kind):
    """Rows of different lengths, one of them without an image."""
    _, ours, _ = saved[kind, 1]
    tokens, pixels, _ = prompts(ours, 1, rows=2)
    image = ours.config.image_token_index
    marked = [t for t in tokens[0].tolist() if t != image]
    rows = [marked[:2] + [image] + marked[2:], marked[:6], [image] + marked[:3]]
    tiles = [Tiles(one[None], 1, (1, 1)) for one in pixels]
    images = [[tiles[0]], [], [tiles[1]]]
    session = PrependedSession(ours, 3, 20)
    steps = list(generate(ours, rows, images, 5, session=session))
    for i, (row, shown) in enumerate(zip(rows, images)):
        written = [ids[i] for ids in steps]
        encoded = ours.encode_images(shown) if shown else []
        slots = with_slots(row, image, [len(one) for one in encoded])
        prompt = len(slots)
        for n, id in enumerate(written):
            whole = torch.tensor([slots + written[:n]])
            mask = None
            if ours.config.prefix:
                here = torch.arange(whole.shape[1])[None]
                mask = prefix_mask(here, whole.shape[1], torch.tensor([prompt]))
            vision = torch.cat(encoded) if encoded else None
            assert ours(whole, mask=mask, vision=vision)[0, -1].argmax() == id


def test_prefix_mask():
    mask = prefix_mask(torch.arange(5)[None], 5, torch.tensor([3]))[0, 0]
    wanted = torch.tensor(
        [
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 0, 0],
            [1, 1, 1, 1, 0],
            [1, 1, 1, 1, 1],
        ]
    )
    assert torch.equal(mask, wanted.bool())


def test_smolvlm_and_several_tiles(tmp_path, proof):
    """Text before the images, and images of two and three tiles, each encoded by itself."""
    worst = 0.0
    for seed, make in enumerate(
        (reference_prepended.idefics3, reference_prepended.smolvlm) * 2
    ):
        hub = make(seed)
        hub.save_pretrained(tmp_path / str(seed))
        ours = load_prepended(tmp_path / str(seed))
        generator = torch.Generator().manual_seed(seed)
        side, many = ours.config.vision.image_size, 2 + seed % 2
        pixels = torch.randn(2, many, 3, side, side, generator=generator)
        image, each = ours.config.image_token_index, ours.config.tokens_per_tile
        text = torch.randint(
            ours.config.text.vocab_size - 1, (2, 8), generator=generator
        )
        slots = torch.full((2, many * each), image)
        tokens = torch.cat([text[:, :3], slots, text[:, 3:]], dim=1)
        wanted = reference_prepended.hub_logits(hub, tokens, pixels, 0)
        images = ours.encode_images([Tiles(one, 1, (1, many)) for one in pixels])
        worst = max(worst, largest(ours(tokens, vision=torch.cat(images)), wanted))
    what = "4 random configurations, 2 and 3 tiles"
    proof(
        "Idefics3 and SmolVLM: logits, several tiles", "transformers", what, worst, 2e-5
    )


RENAMED = {  # as transformers 4 wrote files, and as models have their names in memory
    "llava": ((r"^vision_tower\.", "vision_tower.vision_model."),),
    "paligemma": (
        (r"^vision_tower\.", "model.vision_tower.vision_model."),
        (r"^language_model\.model\.", "model.language_model."),
        (r"^multi_modal", "model.multi_modal"),
    ),
    "idefics3": ((r"^model\.", ""),),
}


@pytest.mark.parametrize("kind", RENAMED)
def test_names_of_other_versions(saved, kind, tmp_path):
    _, ours, folder = saved[kind, 0]
    shutil.copytree(folder, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    state = {}
    for name, tensor in load_file(path).items():
        for old, new in RENAMED[kind]:
            name = re.sub(old, new, name)
        state[name] = tensor
    save_file(state, path, {"format": "pt"})
    found = load_prepended(tmp_path / "model")
    for (name, a), b in zip(ours.named_parameters(), found.parameters()):
        assert torch.equal(a, b), name


def test_slots_are_counted():
    assert with_slots([5, 9, 5], 9, [3]) == [5, 9, 9, 9, 5]
    with pytest.raises(InputError, match="2 image tokens and 1 images"):
        with_slots([9, 9], 9, [3])


def changed(saved, tmp_path, kind, change):
    """A copy of a folder whose config.json is changed."""
    folder = tmp_path / "model"
    shutil.copytree(saved[kind, 0][2], folder)
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    "kind, change, what",
    [
        ("llava", lambda c: c.update(model_type="qwen2_vl"), "model_type 'qwen2_vl'"),
        ("llava", lambda c: c.pop("vision_feature_select_strategy"), "no class token"),
        ("llava", lambda c: c.update(vision_feature_layer=-9), "vision_feature_layer"),
        ("llava", lambda c: c.update(image_token_id=10**6), "a row of the embedding"),
        (
            "llava",
            lambda c: c["vision_config"].update(model_type="clip_vision_model"),
            "vision_config.model_type",
        ),
        (
            "llava",
            lambda c: c["text_config"].update(model_type="qwen2"),
            "model_type 'qwen2'",
        ),
        ("idefics3", lambda c: c.update(scale_factor=3), "a divisor of the"),
        ("paligemma", lambda c: c["text_config"].update(hidden_size=36), "has shape"),
        ("paligemma", lambda c: c["text_config"].update(num_hidden_layers=9), "lacks"),
        ("idefics3", lambda c: c["text_config"].update(num_hidden_layers=1), "unknown"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    saved, tmp_path, kind, change, what
):
    folder = changed(saved, tmp_path, kind, change)
    with pytest.raises(InputError, match=what):
        load_prepended(folder)


def test_a_shard_that_is_missing_is_named(saved, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved["llava", 1][2], folder)
    sorted(folder.glob("model-*.safetensors"))[1].unlink()
    with pytest.raises(InputError, match="lacks model-00002"):
        load_prepended(folder)
