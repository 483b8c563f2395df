"""Chapter 8: bugs of cross-attention, and what notices them."""

from functools import cache

import torch
from PIL import Image

from bugs import a_bug, a_check, replaced
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.cross_attention import (
    CrossAttention,
    CrossAttentionLayer,
    VisionCache,
)
from mllama_lite.decoder import Step, TextConfig
from mllama_lite.vlm import load

SMALL = TextConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    cross_attention_layers=(1,),
)


@a_bug(
    "cross-attention-taken-for-causal",
    "Where no mask is given, cross-attention is computed as causal: text token t sees "
    "the first vision tokens up to number t.",
    "tests/test_parts.py::test_heads_need_not_fill_the_width",
)
def cross_attention_taken_for_causal():
    right = CrossAttention.forward

    def wrong(self, hidden, key, value, mask=None):
        if mask is None and hidden.shape[1] > 1:
            mask = torch.ones(hidden.shape[1], key.shape[2], dtype=torch.bool).tril()
        return right(self, hidden, key, value, mask)

    with replaced(CrossAttention.forward, wrong):
        yield


@a_bug(
    "gates-without-tanh",
    "The branches are multiplied by the gates themselves, and not by their tanh.",
    "tests/test_parts.py::test_cross_attention_layer",
)
def gates_without_tanh():
    def wrong(self, hidden, step):
        vision = step.vision
        if vision is None:
            return hidden
        sees = 1 if vision.sees is None else vision.sees
        key, value = vision.keys[self.layer], vision.values[self.layer]
        normed = self.input_layernorm(hidden)
        attended = self.cross_attn(normed, key, value, vision.mask) * sees
        hidden = hidden + self.cross_attn_attn_gate * attended
        enlarged = self.mlp(self.post_attention_layernorm(hidden)) * sees
        return hidden + self.cross_attn_mlp_gate * enlarged

    with replaced(CrossAttentionLayer.forward, wrong):
        yield


@a_bug(
    "vision-padding-is-seen",
    "In a batch, the zeros that fill up a row with fewer vision tokens are seen like "
    "vision tokens.",
    "tests/test_parts.py::test_masks_only_where_needed",
)
def vision_padding_is_seen():
    right = VisionCache.context

    def wrong(self, ranges, starts, length):
        context = right(self, ranges, starts, length)
        if context is not None and context.mask is not None:
            for mask, counts in zip(context.mask, self.counts):
                mask[..., sum(counts) :] = True
        return context

    with replaced(VisionCache.context, wrong):
        yield


def a_layer(gate):
    """A layer with random weights, text [1, 9, D] and an image of 6 vision tokens."""
    torch.manual_seed(0)
    layer = CrossAttentionLayer(SMALL, 1).requires_grad_(False)
    layer.cross_attn_attn_gate.fill_(gate)
    layer.cross_attn_mlp_gate.fill_(-gate)
    return layer, torch.randn(1, 9, 32), torch.randn(6, 32)


def computed(layer, text, images):
    """What the layer makes of text that sees all of its row's image."""
    vision = VisionCache.from_images([layer], [[image] for image in images])
    context = vision.context(
        [[(0, None)]] * len(images), [0] * len(images), text.shape[1]
    )
    return layer(text, Step(vision=context))


def written_out(layer, text, image):
    """The same of one row, with products, head by head."""
    attention = layer.cross_attn

    def norm(x, one):
        return x / (x.square().mean(-1, keepdim=True) + one.eps).sqrt() * one.weight

    def heads(x, projection):
        return (x @ projection.weight.T).unflatten(-1, (-1, attention.head_dim))

    normed = norm(text[0], layer.input_layernorm)
    query = norm(heads(normed, attention.q_proj), attention.q_norm)  # [T, H, E]
    key = norm(heads(image, attention.k_proj), attention.k_norm)  # [V, G, E]
    value, mixed = heads(image, attention.v_proj), []
    for head in range(query.shape[1]):
        shared = head * key.shape[1] // query.shape[1]
        scores = query[:, head] @ key[:, shared].T * attention.head_dim**-0.5
        mixed.append(scores.softmax(dim=-1) @ value[:, shared])
    attended = torch.cat(mixed, dim=-1) @ attention.o_proj.weight.T
    hidden = text[0] + layer.cross_attn_attn_gate.tanh() * attended
    enlarged = layer.mlp(norm(hidden, layer.post_attention_layernorm))
    return hidden + layer.cross_attn_mlp_gate.tanh() * enlarged


@a_check("a fresh layer returns its input")
def a_fresh_layer():
    layer, text, image = a_layer(gate=0.0)
    assert torch.equal(computed(layer, text, [image]), text)


@a_check("written out, one token of an answer")
def one_token():
    layer, text, image = a_layer(gate=0.5)
    text = text[:, -1:]
    assert torch.allclose(
        computed(layer, text, [image]), written_out(layer, text, image), atol=1e-5
    )


@a_check("written out, a text of nine tokens")
def a_whole_text():
    layer, text, image = a_layer(gate=0.5)
    assert torch.allclose(
        computed(layer, text, [image]), written_out(layer, text, image), atol=1e-5
    )


def rows_differ(other_size):
    """A row's token beside a row with an image of so many tokens, against it alone."""
    layer, text, image = a_layer(gate=0.5)
    text, other = text[:, -1:], torch.randn(other_size, 32)
    alone = computed(layer, text, [image])[0]
    together = computed(layer, text.expand(2, -1, -1), [image, other])[0]
    return (alone - together).abs().max()


@a_check("beside an image of the same size, as alone")
def the_same_size():
    assert rows_differ(other_size=6) < 1e-5


@a_check("beside a larger image, as alone")
def a_larger_image():
    assert rows_differ(other_size=15) < 1e-5


@cache
def shipped():
    return load(dtype="float32", device="cpu")


def asked(picture, question, size=None):
    with Image.open(find_folder() / "pictures" / picture) as image:
        image = image.convert("RGB")
        return shipped().ask(question, image.resize(size) if size else image)


@a_check("the shipped model, a picture of one tile")
def a_small_picture():
    assert asked("one.png", "Which digit is this?", size=(46, 56)) == "7"


@a_check("the shipped model, a picture of three tiles")
def a_wide_picture():
    assert asked("digits.png", "What colour is the 9?") == "purple"
