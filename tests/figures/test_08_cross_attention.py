"""The figures of chapter 8 against the package."""

import itertools

import pytest
import torch

from mllama_lite.attention_maps import look
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.cross_attention import visible_ranges
from mllama_lite.tiles import open_image
from mllama_lite.tokenizer import ImagePart
from mllama_lite.vlm import load

REFERENCE, META, ALL = (
    "the reference's",
    "Meta's code while it writes",
    "all stay visible",
)
ROWS = ["a b I I c I d", "I I I", "a b c", "I a I b", "x I", "I I a b I c I I d e f g"]


def matrix(ranges, length):
    """Rows of tokens, columns of images."""
    return [
        [start <= t and (end is None or t < end) for start, end in ranges]
        for t in range(length)
    ]


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("answer", [0, 3])
def test_image_prompt(figure, row, answer):
    shown = figure("image_prompt")
    shown.set("Prompt, I is an image", row)
    shown.set("Tokens of the answer", answer)
    tokens = row.split() + [f"+{i + 1}" for i in range(answer)]
    got, want = shown.values(), visible_ranges(tokens, "I")
    assert got["tokens"] == tokens
    assert [tuple(r) for r in got["ranges"]] == want
    assert got["matrix"] == matrix(want, len(tokens))
    shown.set("Rule", ALL)
    want = [(start, None) for start, _ in want]
    assert shown.values()["matrix"] == matrix(want, len(tokens))


@pytest.mark.witness
def test_image_prompt_as_meta_writes(figure):
    from llama_models.llama3.chat_format import create_vision_mask

    shown = figure("image_prompt")
    shown.set("Rule", META)
    shown.set("Tokens of the answer", 2)
    for row in itertools.product("aI", repeat=4):
        shown.set("Prompt, I is an image", " ".join(row))
        theirs = [
            (start, None if end == -1 else end)
            for start, end in create_vision_mask(row, "I")
        ]
        assert shown.values()["matrix"] == matrix(theirs, 6), row


def test_image_prompt_goes_dark(figure):
    shown = figure("image_prompt")
    assert "“+2”, sees image 2. Image 1 has been dark since token 4" in shown.words()
    shown.set("Token that looks", 3)
    assert "Token 3 of 8, “b”, sees image 1." in shown.words()
    assert "dark" not in shown.words()
    shown.set("Rule", META)
    shown.set("Token that looks", 7)
    assert "“+1”, sees no image" in shown.words()
    assert "2 of 8 tokens see no image" in shown.words()
    shown.set("Example", "text only")
    assert "is skipped" in shown.words()


def test_image_prompt_is_edited_and_dragged(figure):
    shown = figure("image_prompt")
    shown.press("Add an image")
    assert shown.values()["tokens"] == ["I", *"abIcdI", "+1", "+2"]
    shown.press("Take the last away")
    second = shown.root.locator("rect[data-drag='3']").bounding_box()
    x, y = (
        second["x"] + second["width"] / 2,
        second["y"] + second["height"] / 2,
    )
    step = second["width"] / 14.5 * 16.5
    shown.page.mouse.move(x, y)
    shown.page.mouse.down()
    shown.page.mouse.move(x - 2 * step, y, steps=4)
    shown.page.mouse.up()
    typed = shown.control("Prompt, I is an image").input_value()
    assert typed == "I I a b c d"
    assert shown.values()["ranges"] == [[0, None], [1, None]]
    assert "sees images 1 and 2" in shown.words()


@pytest.fixture(scope="module")
def vlm():
    return load(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def image():
    return open_image(find_folder() / "pictures" / "mixed.png")


def likely(vlm, image, question, ids):
    """Probability of each token of an answer after those before it."""
    message = {"role": "user", "content": [ImagePart(image), question]}
    prompt, _ = vlm.tokenizer.encode_chat([message])
    logits = vlm.logits(prompt + ids, [image])[len(prompt) - 1 : -1]
    return logits.softmax(-1)[torch.arange(len(ids)), ids].tolist()


def with_gates(vlm, shares, parts, run):
    """Run something with the gates at shares of their trained openings."""
    gates = [
        (getattr(layer, f"cross_attn_{part}_gate"), share)
        for layer, share in zip(vlm.model.cross_attention_layers, shares)
        for part in parts
    ]
    before = [gate.clone() for gate, _ in gates]
    for gate, share in gates:
        gate.copy_((gate.tanh() * share / 100).atanh())
    result = run()
    for (gate, _), value in zip(gates, before):
        gate.copy_(value)
    return result


def test_layer_gates(figure, vlm, image):
    shown = figure("layer_gates")
    assert shown.values() is None and "Press the button" in shown.words()
    shown.press("Ask the model")
    both, attention, mlp = ("attn", "mlp"), ("attn",), ("mlp",)
    for question, shares, turned, parts in (
        ("What is in the picture?", (0, 100, 100), "attention and MLP", both),
        ("Which digit is green?", (0, 100, 100), "attention and MLP", both),
        ("How many digits are in the picture?", (100, 100, 0), "MLP only", mlp),
        ("What is below the 2?", (100, 30, 150), "attention only", attention),
    ):
        shown.set("Question", question)
        shown.set("Gates that are turned", turned)
        for layer, share in zip((1, 3, 5), shares):
            shown.set(f"Layer {layer}", share)
        got = shown.computed()
        message = {"role": "user", "content": [ImagePart(image), question]}
        prompt, _ = vlm.tokenizer.encode_chat([message])
        ids = vlm.generate(prompt, [image], 24)
        before = likely(vlm, image, question, ids)
        now, says = with_gates(
            vlm,
            shares,
            parts,
            lambda question=question, ids=ids: (
                likely(vlm, image, question, ids),
                vlm.ask(question, image),
            ),
        )
        assert got["trained"] == vlm.ask(question, image)
        assert got["says"] == says
        assert got["before"] == pytest.approx(before, abs=1e-4)
        assert got["likely"] == pytest.approx(now, abs=1e-4)
        changed = got["says"] != got["trained"]
        assert ("becomes" if changed else "stays") in shown.words()
        whole = torch.tensor(now).prod()
        assert f"now {whole:.2f}; of its token 1" in shown.words()


def test_layer_gates_looks(figure, vlm, image):
    """As trained, all looks are the package's; layer 1 looks the same with its gates closed."""
    shown = figure("layer_gates")
    shown.press("Ask the model")
    question = "What is in the picture?"
    looks = look(vlm, question, image).weights[0]
    closed = shown.computed()
    assert closed["looks"]["1"] == pytest.approx(
        looks[1][0].flatten().tolist(), abs=1e-4
    )
    far = torch.tensor(closed["looks"]["3"]) - looks[3][0].flatten()
    assert far.abs().max() > 0.05
    shown.set("Layer 1", 100)
    shown.computed()
    for token in (1, 5):
        shown.set("Token of the answer", token)
        got = shown.computed()
        assert got["token"] == token - 1
        for layer, weights in looks.items():
            want = weights[token - 1].flatten().tolist()
            assert got["looks"][str(layer)] == pytest.approx(want, abs=1e-4)
    assert got["likely"] == got["before"]
    assert "stays" in shown.words()
    assert "Layer 5, head 0" in shown.root.locator("canvas").nth(8).get_attribute(
        "aria-label"
    )
    shown.root.locator("[data-token='2']").click()
    assert shown.computed()["token"] == 2
