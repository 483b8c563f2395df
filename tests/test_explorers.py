"""The controls of a live notebook compute what the package computes."""

import io
from datetime import UTC, datetime

import pytest
import torch
from PIL import Image

from explorers import AttentionExplorer, ChatBox, SamplingPlayground, TileExplorer
from mllama_lite import load
from mllama_lite.attention_maps import look
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.generation import Sampling, probabilities

PICTURES = find_folder() / "pictures"


@pytest.fixture(scope="module")
def vlm():
    return load(dtype="float32", device="cpu")


def upload(content, name="mine.png"):
    file = {"name": name, "type": "image/png", "size": len(content)}
    return ({**file, "content": content, "last_modified": datetime.now(UTC)},)


def shown(widget):
    return Image.open(io.BytesIO(widget.value)).convert("RGB")


@pytest.mark.parametrize(
    "width,height,told",
    [
        (
            560,
            560,
            "560 x 560 pixels go on 1 x 1 tiles (rows x columns), as 560 x 560; 0%",
        ),
        (561, 560, "1 x 2 tiles (rows x columns), as 561 x 560; 50%"),
        (1000, 500, "1 x 2 tiles (rows x columns), as 1000 x 500; 20%"),
        (1, 2240, "4 x 1 tiles"),
    ],
)
def test_tiles_of_a_size(width, height, told):
    explorer = TileExplorer()
    explorer.width.value, explorer.height.value = width, height
    assert told in explorer.said.value


def test_tiles_of_a_picture_of_ones_own():
    explorer, file = TileExplorer(56), io.BytesIO()
    Image.new("RGB", (300, 70), "red").save(file, "PNG")
    explorer.upload.value = upload(file.getvalue())
    assert (explorer.width.value, explorer.height.value) == (300, 70)
    drawn = shown(explorer.picture)
    assert drawn.size == (140 * 4, 140) and drawn.getpixel((20, 20)) == (255, 0, 0)
    assert drawn.getpixel((20, 135)) == (200, 200, 200)  # padding
    explorer.upload.value = upload(b"no picture")
    assert "expected" in explorer.said.value


def test_attention_is_that_of_look(vlm):
    explorer = AttentionExplorer(vlm)
    assert "Ask" in explorer.said.value
    explorer.ask.click()
    looks = look(vlm, "What is in the picture?", PICTURES / "digits.png")
    assert looks.answer in explorer.said.value
    assert len(explorer.token.options) == len(looks.pieces)
    before = explorer.picture.value
    for control, value in (
        (explorer.layer, 5),
        (explorer.head, 2),
        (explorer.token, 1),
    ):
        control.value = value
        assert explorer.picture.value != before
        before = explorer.picture.value
    weights = looks.weights[0][5][1][2]  # [tiles, P]
    most = weights[..., 1:].max() / weights.sum()
    assert f"{most:.0%} of what these heads gave" in explorer.said.value
    explorer.choice.upload.value = upload(b"no picture")
    explorer.ask.click()
    assert "expected" in explorer.said.value


def test_the_next_token_by_hand(vlm):
    play = SamplingPlayground(vlm)
    settings = Sampling(temperature=1.0)
    chances = probabilities(play.logits, settings)[0]
    likeliest = chances.max()
    assert play.tokens[0].description.endswith(f"{likeliest:.3f}")
    play.top_k.value = 3
    assert "3 tokens can come next" in play.said.value
    assert [button.disabled for button in play.tokens] == [False] * 3 + [True] * 5
    while not play.ended:
        play.tokens[0].click()  # greedily
    wanted = vlm.ask("What is in the picture?", PICTURES / "digits.png")
    assert f"{wanted!r}. The answer has ended." in play.said.value.replace(
        "&#x27;", "'"
    )
    length = len(play.written)
    play.tokens[0].click()
    assert len(play.written) == length  # nothing comes after the end
    play.back.click()
    assert len(play.written) == length - 1 and not play.ended
    play.choice.names.value = "one"
    assert play.written == []
    torch.manual_seed(0)
    play.draw.click()
    assert len(play.written) == 1


def test_a_chat_with_a_picture(vlm):
    chat = ChatBox(vlm)
    chat.question.value = "Which digit is this?"
    chat.upload.value = upload((PICTURES / "one.png").read_bytes(), "one.png")
    chat.send.click()
    answer = vlm.ask("Which digit is this?", PICTURES / "one.png")
    assert f"<p>Model: {answer}</p>" in chat.history.value
    assert "You: Which digit is this? [one.png]" in chat.history.value
    assert chat.question.value == "" and chat.upload.value == ()
    chat.question.value = "<b>And</b> its colour?"
    chat.send.click()
    assert chat.history.value.count("<p>") == 4 and "<b>" not in chat.history.value
    chat.question.value = " "
    chat.send.click()
    assert "expected some text" in chat.said.value
    chat.reset.click()
    assert chat.history.value == "" and chat.said.value == ""


@pytest.mark.parametrize("kind", [AttentionExplorer, SamplingPlayground, ChatBox])
def test_where_nothing_computes_the_name_is_shown(kind, vlm):
    data = kind(vlm)._repr_mimebundle_()
    assert data["text/plain"].startswith(f"{kind.name}: run this cell in a notebook")
    assert "application/vnd.jupyter.widget-view+json" in data
