"""The figures of chapter 10 against the package."""

from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import mllama_lite
from mllama_lite.attention import KVCache
from mllama_lite.cost import memory_needs
from mllama_lite.cross_attention import VisionCache, VisionContext
from mllama_lite.generation import Sampling, probabilities
from mllama_lite.model import MllamaConfig, empty_model
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
    assert first.values[0] < 0.8 and first.values[1] > 0.1  # it is not sure
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


CARDS = {  # MiB, bytes a second, FLOP a second
    "L4": (23034, 300e9, 121e12),
    "RTX 4090": (24564, 1008e9, 165e12),
    "L40S": (46068, 864e9, 362e12),
    "H100": (81559, 3350e9, 989e12),
}


def counted(tokens, before, images, rows):
    """(FLOPs, bytes) of a pass of the 11B on the meta device, counted as the chapter does.

    `tokens` are taken in when `before` are in the cache; logits for the last alone.
    """
    model = empty_model(MllamaConfig()).bfloat16()
    vision = None
    if images:
        one = torch.empty(4 * 1601, 4096, device="meta", dtype=torch.bfloat16)
        layers = model.cross_attention_layers
        cache = VisionCache.from_images(layers, [[one] * images] * rows)
        vision = VisionContext(cache.keys, cache.values)  # every token sees all
    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    last = torch.full((rows,), tokens - 1, device="meta")
    kept = KVCache(capacity=before + tokens)
    kept.length = before
    with FlopCounterMode(display=False) as counter:
        model(ids, kept, vision=vision, logits_at=last)
    moved = 0
    for name, parameter in model.language_model.named_parameters():
        idle = "embed_tokens" in name or "cross_attn.k_" in name
        idle = idle or "cross_attn.v_" in name
        layer = name.split(".")[2] if ".layers." in name else "-1"
        if not images and int(layer) in model.config.text.cross_attention_layers:
            idle = True  # the layer is skipped
        moved += 0 if idle else parameter.nbytes
    if vision is not None:
        for tensors in (vision.keys, vision.values):
            moved += sum(tensor.nbytes for tensor in tensors.values())
    moved += rows * (before + tokens) * 32 * 2 * 8 * 128 * 2
    return counter.get_total_flops(), moved


def set_card(shown, card, tokens, images, rows):
    shown.set("Card", card)
    shown.set("Tokens a row", tokens.bit_length() - 1)
    shown.set("Images a row", images)
    shown.set("Rows at once", rows.bit_length() - 1)


@pytest.mark.parametrize("tokens, images", [(8192, 4), (64, 1), (131072, 0), (256, 3)])
def test_card_calculator_memory(figure, tokens, images):
    shown = figure("card_calculator")
    config = MllamaConfig()
    for card, rows in (("RTX 4090", 1), ("L40S", 4)):
        set_card(shown, card, tokens, images, rows)
        want = memory_needs(config, "bfloat16", tokens, images)
        want["text cache"] *= rows
        want["image cache"] *= rows
        values, total = shown.values(), sum(want.values()) / 2**30
        assert values["held"] == want
        assert values["fits"] == (total <= 0.95 * CARDS[card][0] / 1024)
        said = "which fits" if values["fits"] else "that may be filled"
        assert f"{card}: {total:.2f} GiB, " in shown.words()
        assert said in shown.words()


@pytest.mark.parametrize(
    "card, tokens, images, rows",
    [
        ("H100", 256, 1, 1),
        ("RTX 4090", 8192, 4, 1),
        ("L4", 64, 0, 256),
        ("L40S", 128, 2, 4),
    ],
)
def test_card_calculator_speed(figure, card, tokens, images, rows):
    shown = figure("card_calculator")
    set_card(shown, card, tokens, images, rows)
    values, (_, bandwidth, peak) = shown.values(), CARDS[card]
    flops, moved = counted(1, tokens - 1, images, rows)
    assert (values["step"]["flops"], values["step"]["bytes"]) == (flops, moved)
    rate = rows / max(moved / bandwidth, flops / peak)
    assert values["rate"] == pytest.approx(rate)
    waits = "memory" if moved / bandwidth > flops / peak else "arithmetic"
    assert f"it waits for {waits}" in shown.words()
    flops, moved = counted(tokens, 0, images, 1)
    assert (values["prompt"]["flops"], values["prompt"]["bytes"]) == (flops, moved)
    seconds = max(moved / bandwidth, flops / peak)
    assert values["promptSeconds"] == pytest.approx(seconds)


def test_card_calculator_is_the_chapters(figure):
    """The chapter's numbers: 22.58 GiB for 8,192 tokens and four images; rows are cheap."""
    shown = figure("card_calculator")
    assert "RTX 4090: 22.58 GiB, which fits" in shown.words()
    set_card(shown, "H100", 256, 1, 1)
    assert "at most 180 tokens a second" in shown.words()
    one = shown.values()["rate"]
    shown.set("Rows at once", 4)
    assert 12 < shown.values()["rate"] / one < 16
    assert "in each of 16 rows" in shown.words()
