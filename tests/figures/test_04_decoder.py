"""The figures of chapter 4 against the package."""

import math

import pytest
import torch
import torch.nn.functional as F

from mllama_lite import image_to_tiles, load
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.cross_attention import visible_ranges
from mllama_lite.decoder import DecoderLayer, TextConfig
from mllama_lite.rope import rope_cos_sin, rope_frequencies
from mllama_lite.tiles import open_image
from mllama_lite.tokenizer import ImagePart

CONFIG = TextConfig(
    hidden_size=32,
    intermediate_size=112,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    cross_attention_layers=(),
    num_extra_embeddings=0,
)


def numbers(seed):
    """The generator of norm_and_residual: variance 1."""
    state = seed * 2654435769 % 2**32
    while True:
        state = (state * 1664525 + 1013904223) % 2**32
        yield math.sqrt(3) * (2 * state / 2**32 - 1)


def passed(seed, scale):
    """Stream [1, T, D] and layers of the figure, by the package's classes."""
    draw = numbers(seed)
    stream = torch.tensor([next(draw) for _ in range(8 * 32)]).view(1, 8, 32)
    layers = []
    for i in range(32):
        layer = DecoderLayer(CONFIG, i)
        for part in (
            *(getattr(layer.self_attn, f"{name}_proj") for name in "qkvo"),
            layer.mlp.gate_proj,
            layer.mlp.up_proj,
            layer.mlp.down_proj,
        ):
            outs, ins = part.weight.shape
            row = [scale / math.sqrt(ins) * next(draw) for _ in range(outs * ins)]
            part.weight.copy_(torch.tensor(row).view(outs, ins))
        layers.append(layer)
    return stream, layers


def run(stream, layers, norm, residual):
    """States [L + 1, T, D], as the chapter's pass_through makes them."""
    cos, sin = rope_cos_sin(rope_frequencies(8), torch.arange(8)[None, None])
    hidden, states = stream, [stream]
    for layer in layers:
        for before, part, more in (
            (layer.input_layernorm, layer.self_attn, (cos, sin)),
            (layer.post_attention_layernorm, layer.mlp, ()),
        ):
            change = part(before(hidden) if norm else hidden, *more)
            hidden = hidden + change if residual else change
        states.append(hidden)
    return torch.cat(states)


CASES = {
    "both": (True, True),
    "norm only": (True, False),
    "residual only": (False, True),
    "neither": (False, False),
}


@pytest.mark.parametrize("seed, scale", [(1, 1.0), (2, 1.0), (1, 0.6), (1, 1.8)])
def test_norm_and_residual(figure, seed, scale):
    shown = figure("norm_and_residual")
    shown.set("Size of the weights", scale)
    for _ in range(seed - 1):
        shown.press("Other weights")
    stream, layers = passed(seed, scale)
    got = shown.values()
    assert got["seed"] == seed
    assert [case["name"] for case in got["cases"]] == list(CASES)
    for case in got["cases"]:
        states = run(stream, layers, *CASES[case["name"]])
        size = states.double().square().mean((1, 2)).sqrt()
        rows = F.normalize(states.double(), dim=-1, eps=0)
        cosine = ((rows @ rows.mT).sum((1, 2)) - 8) / 56
        compared = 0
        for i in range(33):
            if 1e-30 < size[i] < 1e6:  # beyond, rounding is all that is left
                near = 1e-4 if i <= 4 else 1e-2  # without a residual, rounding grows
                assert case["size"][i] == pytest.approx(size[i].item(), rel=near)
                assert case["alike"][i] == pytest.approx(cosine[i].item(), abs=near)
                compared += 1
            else:
                assert not 1e-25 < case["size"][i] < 1e5
        assert compared == 33 or (compared > 2 and case["name"] in list(CASES)[2:])
        if case["name"] == "both":
            want = states[-1].flatten().tolist()
            assert case["last"] == pytest.approx(want, abs=1e-3 * size[-1].item())


def test_norm_and_residual_says_what_becomes_of_the_stream(figure):
    shown = figure("norm_and_residual")
    shown.set("Layers passed", 32)
    assert "With the norm and no residual, after 32 of 32" in shown.words()
    assert "cosine of 1.00" in shown.words()
    shown.set("Residual", True)
    assert "With norm and residual" in shown.words()
    both = shown.values()["cases"][0]
    assert f"has size {both['size'][32]:.1f}" in shown.words()
    assert f"cosine of {both['alike'][32]:.2f}" in shown.words()
    assert both["alike"][32] < 0.8 and 2 < both["size"][32] < 10
    shown.set("Norm", False)
    assert "With the residual and no norm" in shown.words()
    assert "has exploded" in shown.words()
    shown.set("Residual", False)
    assert "With neither" in shown.words() and "has died" in shown.words()
    shown.set("Size of the weights", 2)
    assert "has exploded" in shown.words()
    shown.set("Norm", True)
    assert "cosine of 1.00" in shown.words()


RUN = "Run the model (loads 5 MB)"


@pytest.fixture(scope="module")
def trained():
    return load(device="cpu", dtype="float32")


def read_without(vlm, question, left):
    """The whole model's answer, that without layers, and the lens [L + 1, answer]."""
    picture = open_image(find_folder() / "pictures" / "digits.png")
    language, tokenizer = vlm.model.language_model, vlm.tokenizer
    layers = language.model.layers
    prompt, _ = tokenizer.encode_chat(
        [{"role": "user", "content": [ImagePart(picture), question]}]
    )
    usual = vlm.generate(prompt, [picture], 12)
    states = []

    def hook(i):
        def changed(module, args, out):
            out = args[0] if i in left else out
            states.extend([args[0], out] if i == 0 else [out])
            return out

        return changed

    hooks = [layer.register_forward_hook(hook(i)) for i, layer in enumerate(layers)]
    try:
        now = vlm.generate(prompt, [picture], 12)
        states.clear()
        whole = prompt + usual
        tiles = image_to_tiles(picture, vlm.config.vision.image_size)
        ranges = [visible_ranges(whole, tokenizer.image_id)]
        seen = vlm.model.vision_cache([[tiles]]).context(ranges, [0], len(whole))
        language(torch.tensor([whole]), vision=seen)
    finally:
        for each in hooks:
            each.remove()
    stream = torch.stack(states)[:, 0, len(prompt) - 1 : -1]
    probs = language.lm_head(language.model.norm(stream)).softmax(-1)
    shown = [tokenizer.decode(ids, skip_special=True) for ids in (usual, now)]
    return *shown, probs[:, range(len(usual)), usual]


def label(layer):
    return f"Layer {layer}{', image' if layer in (1, 3, 5) else ''}"


def test_layers_left_out(figure, trained):
    shown = figure("layers_left_out")
    assert shown.values() is None and "not loaded yet" in shown.words()
    shown.press(RUN)
    shown.page.wait_for_function(
        "document.querySelector('.mllama-figure').figure.numbers()"
    )
    asked = "What is in the picture?"
    same = {}
    for question, left in [
        (asked, ()),
        (asked, (3,)),
        (asked, (1,)),
        (asked, (0,)),
        (asked, (3, 4)),
        ("Read the digits from left to right.", (2,)),
        ("What colour is the 9?", (1, 3, 5)),
        ("Is there a 7?", (5,)),
    ]:
        shown.set("Question", question)
        for layer in range(7):
            shown.set(label(layer), layer not in left)
        usual, now, probs = read_without(trained, question, left)
        got = shown.values()
        assert (got["usual"], got["now"]) == (usual, now), left
        assert (torch.tensor(got["depths"]) - probs).abs().max() < 1e-4
        same[question, left] = usual == now
        words = shown.words()
        assert f"the model says \u201c{now}\u201d" in words
        assert (f"and not \u201c{usual}\u201d" in words) == (usual != now)
        for layer in range(7):
            mean = f"layer {layer}: {probs[layer + 1].mean():.2f}"
            assert (mean in words) == (layer not in left)
    # Readable is not needed: most is read after layer 3, but layer 1 is missed.
    assert same[asked, (3,)] and same[asked, (3, 4)] and not same[asked, (1,)]


def test_layers_left_out_leaves_the_model_as_it_was(figure):
    shown = figure("layers_left_out")
    shown.set(label(4), False)
    assert "Without layer 4" in shown.words()
    shown.press(RUN)
    shown.page.wait_for_function(
        "document.querySelector('.mllama-figure').figure.numbers()"
    )
    assert "Without layer 4 the model says" in shown.words()
    # A click on a column does what its box does.
    shown.root.locator("[data-layer='2']").click()
    assert not shown.control(label(2)).is_checked()
    assert "Without layers 2 and 4 the model says" in shown.words()
    own = """async () => (await mllama.loadOnce()).model.language_model.layers.map(
        layer => Object.hasOwn(layer, "forward"))"""
    assert shown.page.evaluate(own) == [False] * 7
    # What others have put in a layer's place stays there.
    shown.page.evaluate("""async () => {
        const { model } = await mllama.loadOnce();
        mllama.change(model, mllama.gates(model), { drop: [5] });
    }""")
    shown.set(label(0), False)
    assert shown.page.evaluate(own) == [layer == 5 for layer in range(7)]
