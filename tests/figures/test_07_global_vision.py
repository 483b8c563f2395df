"""The figures of chapter 7 against autograd and the package."""

import copy

import pytest
import torch

from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.tiles import open_image
from mllama_lite.tokenizer import ImagePart
from mllama_lite.vlm import load


def learned(g, f, steps):
    """Gate and branch after `steps` of descent by torch, and both gradients then."""
    parameters = [torch.tensor(v, dtype=torch.float64) for v in (g, f)]
    for step in range(steps + 1):
        with torch.enable_grad():
            gate, branch = (p.detach().requires_grad_() for p in parameters)
            output = 2 + gate.tanh() * branch
            slopes = torch.autograd.grad((output - 3) ** 2 / 2, (gate, branch))
        if step < steps:
            parameters = [p - 0.1 * d for p, d in zip((gate, branch), slopes)]
    return gate.item(), branch.item(), output.item(), *(d.item() for d in slopes)


@pytest.mark.parametrize(
    "g, f, steps",
    [(0.0, 1.5, 0), (0.0, 1.5, 1), (-1.2, 1.5, 60), (3.0, 0.5, 100), (0.05, 0.0, 40)],
)
def test_gate_wakes(figure, g, f, steps):
    shown = figure("gate_wakes")
    shown.set("Gate g at the start", g)
    shown.set("Branch f at the start", f)
    shown.set("Steps of learning", steps)
    got = shown.values()
    names = "gate", "branch", "output", "gateGradient", "branchGradient"
    want = learned(g, f, steps)
    assert [got[name] for name in names] == pytest.approx(want, abs=1e-9)
    assert f"the output is {want[2]:.2f}, wanted is 3" in shown.words()


def test_gate_wakes_says_who_learns(figure):
    shown = figure("gate_wakes")
    assert "Only the gate learns" in shown.words()
    shown.set("Steps of learning", 1)
    assert "Both learn" in shown.words()
    shown.set("Steps of learning", 60)
    assert "arrived" in shown.words()
    shown.set("Branch f at the start", 0)
    assert "dead" in shown.words()
    assert (shown.values()["gate"], shown.values()["branch"]) == (0, 0)
    shown.set("Gate g at the start", 0.05)  # ajar is enough
    shown.set("Steps of learning", 100)
    assert "arrived" in shown.words()


def test_gate_wakes_is_dragged(figure):
    shown = figure("gate_wakes")
    ring = shown.root.locator("[data-drag=gate]").bounding_box()
    x, y = ring["x"] + ring["width"] / 2, ring["y"] + ring["height"] / 2
    width = shown.root.locator("svg").first.bounding_box()["width"]
    shown.page.mouse.move(x, y)
    shown.page.mouse.down()
    shown.page.mouse.move(x + 38 * width / 320, y, steps=3)  # 38 units are 1
    shown.page.mouse.up()
    assert shown.values()["gate"] == pytest.approx(1, abs=0.06)
    assert float(shown.control("Gate g at the start").input_value()) == pytest.approx(
        shown.values()["gate"]
    )


QUESTIONS = (
    "Which digit is green?",
    "Where is the star?",
    "Read the digits from left to right.",
    "What is in the picture?",
)
FINAL, FIRST, THIRD = (
    f"Hand on the {name}"
    for name in ("final state", "state of layer 1", "state of layer 3")
)
TILE, LATE = "Post-tile embedding", "Keep states late, after their layers"
INTACT = {FINAL: True, FIRST: True, THIRD: True, TILE: True, LATE: False}
INTACT |= {"Global gates": 100}


@pytest.fixture(scope="module")
def vlm():
    return load(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def image():
    return open_image(find_folder() / "pictures" / "mixed.png")


def told(vlm, image):
    """Answers to the questions, and the logits at their first tokens."""
    found = []
    for question in QUESTIONS:
        message = {"role": "user", "content": [ImagePart(image), question]}
        prompt, _ = vlm.tokenizer.encode_chat([message])
        found.append((vlm.ask(question, image), vlm.logits(prompt, [image])[-1]))
    return found


def damage(encoder, changes):
    """Do to a copy of the encoder what the controls say."""
    for layer in encoder.global_transformer.layers:
        for gate in (layer.gate_attn, layer.gate_ffn):
            gate.copy_((gate.tanh() * changes["Global gates"] / 100).atanh())
    if not changes[TILE]:
        encoder.post_tile_positional_embedding.gate.zero_()
    if changes[LATE]:
        whole = encoder.in_layers

        def in_layers(layers, x, num_tiles, keep=()):
            x, kept = whole(layers, x, num_tiles, [i + 1 for i in keep])
            return x, kept + [x] * (len(keep) - len(kept))

        encoder.in_layers = in_layers
    encode = encoder.encode

    def without(*given):
        features = encode(*given).clone()
        for name, channels in (
            (FINAL, slice(0, 128)),
            (FIRST, slice(128, None, 2)),
            (THIRD, slice(129, None, 2)),
        ):
            if not changes[name]:
                features[..., channels] = 0
        return features

    encoder.encode = without


def test_vision_parts(figure, vlm, image):
    shown = figure("vision_parts")
    assert shown.values() is None and "Press the button" in shown.words()
    shown.press("Ask the model")
    trained, whole = vlm.model.vision_model, told(vlm, image)
    for changes in (
        {FIRST: False, THIRD: False},  # as the figure begins
        {FINAL: False},
        {THIRD: False, TILE: False},
        {LATE: True},
        {"Global gates": 0},
        {"Global gates": 140, FIRST: False},
    ):
        changes = INTACT | changes
        for label, value in changes.items():
            shown.set(label, value)
        got = shown.computed()
        vlm.model.vision_model = copy.deepcopy(trained)
        damage(vlm.model.vision_model, changes)
        want = told(vlm, image)
        vlm.model.vision_model = trained
        assert got["whole"] == [text for text, _ in whole]
        assert got["now"] == [text for text, _ in want]
        moved = [(b - a).abs().max().item() for (_, a), (_, b) in zip(whole, want)]
        assert got["moved"] == pytest.approx(moved, abs=1e-3)
        different = sum(a != b for a, b in zip(got["whole"], got["now"]))
        assert f"{different} of 4 answers change" in shown.words()
        numbers = 128 * sum(changes[name] for name in (FINAL, FIRST, THIRD))
        assert f"{numbers} of 384 numbers" in shown.words()


def test_vision_parts_leaves_the_model_as_it_was(figure):
    shown = figure("vision_parts")
    shown.set(LATE, True)
    shown.set(TILE, False)
    shown.set("Global gates", 30)
    shown.press("Ask the model")
    assert min(shown.computed()["moved"]) > 0.1
    for label, value in INTACT.items():
        shown.set(label, value)
    got = shown.computed()
    assert got["moved"] == [0, 0, 0, 0] and got["now"] == got["whole"]
    assert "The encoder is whole: 384 of 384" in shown.words()
