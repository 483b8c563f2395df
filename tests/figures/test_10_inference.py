"""The figures of chapter 10 against the package."""

from pathlib import Path

import pytest
import torch

import mllama_lite
from mllama_lite.generation import Sampling, probabilities
from mllama_lite.tokenizer import ImagePart

SMALL = Path(mllama_lite.__file__).parent / "small"
BY_HAND = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05]).log()


@pytest.mark.parametrize(
    "temperature, top_k, top_p, min_p",
    [
        (1.0, 0, 0.8, 0.0),
        (0.5, 3, 0.8, 0.0),
        (2.0, 0, 1.0, 0.0),
        (3.0, 4, 0.75, 0.9),
        (0.1, 0, 1.0, 0.2),
    ],
)
def test_next_token_by_hand(figure, temperature, top_k, top_p, min_p):
    shown = figure("next_token")
    shown.set("Temperature", temperature)
    shown.set("Top-k", top_k)
    shown.set("Top-p", top_p)
    shown.set("Min-p", min_p)
    want = probabilities(BY_HAND[None], Sampling(temperature, top_k, top_p, min_p))[0]
    after = torch.tensor(shown.values()["after"])
    assert (after - want).abs().max() < 1e-6
    assert ((after > 0) == (want > 0)).all()
    kept = int((want > 0).sum())
    said = "all 5 tokens stay" if kept == 5 else f"{kept} of 5 tokens stay"
    assert said in shown.words()
    assert f"0.40 before and {want[0]:.2f} after" in shown.words()


def test_next_token_is_picked_by_rank_by_bar_and_by_chance(figure):
    shown = figure("next_token")
    assert "Nothing is written yet." in shown.words()
    shown.set("Token by rank", 3)
    assert "Picked to be written: “house”" in shown.words()
    asking(shown, lambda: shown.press("Write this token"), "Written: “house”")
    asking(shown, shown.root.locator("rect[data-id='4']").click, "“house idea”")
    shown.set("Top-k", 1)  # one stays: chance has no choice
    asking(shown, lambda: shown.press("Draw one"), "“house idea boat”")
    assert shown.values()["written"] == [2, 4, 0]
    assert shown.values()["shares"] == pytest.approx([0.15, 0.05, 0.4], abs=1e-6)


def asking(shown, doing, said):
    """Do something, and wait until the figure has done it and says so."""
    doing()
    shown.page.wait_for_function(
        "said => document.querySelector('.figure-words').innerText.includes(said)",
        arg=said,
    )


def test_next_token_of_the_model(figure):
    shown = figure("next_token")
    asking(shown, lambda: shown.press("Ask the model"), "“What is above the 9?”")
    vlm = mllama_lite.load(device="cpu", dtype="float32")
    mixed, digits = (
        mllama_lite.open_image(SMALL / "pictures" / f"{name}.png")
        for name in ("mixed", "digits")
    )
    message = {"role": "user", "content": [ImagePart(mixed), "What is above the 9?"]}
    prompt, _ = vlm.tokenizer.encode_chat([message])

    def check(written):
        want = vlm.logits(prompt + written, [mixed])[-1]
        values = shown.values()
        assert values["written"] == written
        assert (torch.tensor(values["logits"]) - want).abs().max() < 1e-3
        after = probabilities(want[None], Sampling(1.0, top_p=0.8))[0]
        assert (torch.tensor(values["after"]) - after).abs().max() < 1e-3
        return want.softmax(-1)

    first = check([]).topk(2)
    assert first.values[0] < 0.5  # a close choice
    written = [first.indices[1].item()]
    shown.set("Token by rank", 2)
    said = f"Written: “{vlm.tokenizer.decode(written)}”"
    asking(shown, lambda: shown.press("Write this token"), said)
    assert check(written).max() > 0.99  # sure, now that it has been chosen for

    # The likeliest token every time is the package's greedy answer.
    question = "Read the digits from left to right."
    asking(shown, lambda: shown.set("Question", question), f"“{question}” Nothing")
    answer = vlm.ask(question, digits)
    tokens = vlm.tokenizer.encode(answer)
    for n in range(1, len(tokens) + 1):
        said = f"Written: “{vlm.tokenizer.decode(tokens[:n])}”"
        asking(shown, lambda: shown.press("Write this token"), said)
    asking(shown, lambda: shown.press("Write this token"), "The answer is finished.")
    assert shown.values()["text"] == answer
