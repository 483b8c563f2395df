"""Chapter 7: bugs of the global half of the encoder, and what notices them."""

from functools import cache

import torch
import torch.nn.functional as F

from bugs import a_bug, a_check, replaced
from mllama_lite.global_vision import GatedVisionLayer, VisionModel
from mllama_lite.local_vision import LocalVision, VisionConfig, padded_length
from mllama_lite.small_model.evaluation import answers, exact_match, held_out
from mllama_lite.tiles import canvases
from mllama_lite.vlm import load


@a_bug(
    "gate-without-tanh",
    "The gates of the global layers are multiplied as they are, without the tanh.",
    "tests/test_parts.py::test_vision_model",
)
def gate_without_tanh():
    def wrong(self, x, num_real):
        attended = self.self_attn(self.input_layernorm(x), num_real)
        x = x + self.gate_attn * attended
        return x + self.gate_ffn * self.mlp(self.post_attention_layernorm(x))

    with replaced(GatedVisionLayer.forward, wrong):
        yield


@a_bug(
    "no-post-tile-embedding",
    "Nothing is added between the norm and the global layers: the embedding that tells a "
    "token its tile for the second time is made and loaded, and not called.",
    "tests/test_parts.py::test_vision_model",
)
def no_post_tile_embedding():
    def wrong(self, pixel_values, aspect_ratio_ids, num_tiles):
        local = LocalVision.forward(self, pixel_values, aspect_ratio_ids, num_tiles)
        x, states = self.layernorm_post(local[0]), local[1]
        x, _ = self.in_layers(self.global_transformer, x, num_tiles)
        kept = torch.stack(states, dim=-1).flatten(-2)
        return torch.cat([x, kept], dim=-1)[:, :, : self.config.num_patches]

    with replaced(VisionModel.encode, wrong):
        yield


@a_bug(
    "largest-count-for-all",
    "A batch of images with different numbers of tiles is not encoded in groups: all count "
    "as having as many tiles as the largest of them.",
    "tests/test_parts.py::test_images_of_a_batch_are_encoded_as_alone",
)
def largest_count_for_all():
    def wrong(self, pixel_values, aspect_ratio_ids):
        counts = [rows * columns for rows, columns in canvases()]
        largest = max(counts[number - 1] for number in aspect_ratio_ids.tolist())
        return self.encode(pixel_values, aspect_ratio_ids, largest)

    with replaced(VisionModel.forward, wrong):
        yield


SIZES = VisionConfig(
    hidden_size=16,
    attention_heads=2,
    intermediate_size=32,
    num_hidden_layers=3,
    num_global_layers=2,
    image_size=28,
    patch_size=7,
    intermediate_layers_indices=(0, 2),
)


def begun(make):
    """A module with the parameters that its class gives it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(SIZES)


def all_random(make):
    """The same without a parameter of 0 or 1, its gates open."""
    module, generator = begun(make), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
            if parameter.numel() == 1:
                parameter.fill_(0.8)
    # As in every checkpoint, the tables hold zeros for tiles that a canvas lacks.
    for name, table in module.named_modules():
        if name.endswith("embedding") and isinstance(table, torch.nn.Embedding):
            places = table.weight.data.view(table.num_embeddings, 4, -1)
            for number, (rows, columns) in enumerate(canvases(), start=1):
                places[number, rows * columns :] = 0
    return module


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def attended(layer, x, num_real):
    """What the attention of a layer adds, with the mask written out."""
    own, normed = layer.self_attn, layer.input_layernorm(x)
    query, key, value = (
        part(normed).unflatten(-1, (-1, own.head_dim)).transpose(1, 2)
        for part in (own.q_proj, own.k_proj, own.v_proj)
    )
    padding = torch.arange(x.shape[1]) >= num_real
    scores = query @ key.transpose(2, 3) * own.head_dim**-0.5
    scores = scores.masked_fill(padding[:, None] & padding, -1e30)
    return own.o_proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


def layer_by_hand(layer, x, num_real):
    x = x + torch.tanh(layer.gate_attn) * attended(layer, x, num_real)
    normed = layer.post_attention_layernorm(x)
    return x + torch.tanh(layer.gate_ffn) * layer.mlp(normed)


@torch.no_grad()
def off_by_hand(encoder):
    """Largest difference of the final state, from the local half on, of two tiles."""
    pixels, ids = noise(1, 4, 3, 28, 28), torch.tensor([2])
    x, _ = LocalVision.forward(encoder, pixels, ids, 2)
    x = F.layer_norm(
        x, (16,), encoder.layernorm_post.weight, encoder.layernorm_post.bias, 1e-5
    )
    tables = encoder.post_tile_positional_embedding
    x = x + tables.gate.tanh() * tables.embedding.weight[2].view(1, 4, 1, 16)
    real = torch.zeros(4, padded_length(17), dtype=torch.bool)
    real[:2, :17] = True
    order = (~real.flatten()).int().argsort(stable=True)
    x = x.flatten(1, 2)[:, order]
    for layer in encoder.global_transformer.layers:
        x = layer_by_hand(layer, x, 34)
    got = encoder(pixels, ids)[:, :2, :, :16].flatten(1, 2)
    return (got - x[:, :34]).abs().max()


@a_check("gates at 0: a layer gives back its input")
@torch.no_grad()
def identity():
    x = noise(2, 10, 16)
    assert torch.equal(begun(GatedVisionLayer)(x, 7), x)


@a_check("gates at 0: the gradient of a gate is what the formula says")
def gradient():
    layer, x, target = begun(GatedVisionLayer), noise(2, 10, 16), noise(1, 10, 16)
    with torch.enable_grad():
        loss = (layer(x, 7) - target).square().sum()
        (got,) = torch.autograd.grad(loss, layer.gate_attn)
    with torch.no_grad():
        want = (2 * (x - target) * attended(layer, x, 7)).sum()
    assert torch.allclose(got, want, rtol=1e-4)


@a_check("gates at 0: every parameter gets a gradient, be it 0")
def reached():
    encoder = begun(VisionModel)
    with torch.enable_grad():
        encoder(noise(1, 4, 3, 28, 28), torch.tensor([2])).square().mean().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@a_check("the encoder written out, parameters as they begin")
def encoder_fresh():
    assert off_by_hand(begun(VisionModel)) < 1e-4


@a_check("the encoder written out, every parameter random")
def encoder_random():
    assert off_by_hand(all_random(VisionModel)) < 1e-4


@a_check("a batch of one, two and four tiles as its images one by one")
@torch.no_grad()
def mixed_batch():
    encoder, pixels = all_random(VisionModel), noise(3, 4, 3, 28, 28)
    ids = torch.tensor([6, 1, 5])
    together = encoder(pixels, ids)
    for i, count in enumerate((4, 1, 2)):
        alone = encoder(pixels[i : i + 1], ids[i : i + 1])[0]
        assert (together[i, :count] - alone[:count]).abs().max() < 1e-4


@cache
def single_digits():
    """The shipped model, and ten pictures with one digit each."""
    items = [one for one in held_out("validation", 10) if one.row == "one digit"]
    return load(dtype="float32", device="cpu"), items


@a_check("the shipped model reads eight of ten single digits")
def answered():
    model, items = single_digits()
    assert exact_match(items, answers(model, items))["all"][0] >= 8
