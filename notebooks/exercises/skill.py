"""Checks of chapter 14's exercises."""

from itertools import combinations

import torch

import emoji
from exercises import exercise, expect
from mllama_lite.adapters.cost import Rehearsal, peak_of_step
from mllama_lite.adapters.lora import LowRank, add_adapter, find_ranks
from mllama_lite.decoder import TextConfig
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import Mllama, MllamaConfig, empty_model
from mllama_lite.small_model.evaluation import interval

TEXT = TextConfig(
    vocab_size=2048,
    hidden_size=64,
    intermediate_size=160,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    cross_attention_layers=(1,),
)


def tiny(vision_layers=1):
    vision = VisionConfig(
        hidden_size=32,
        attention_heads=2,
        intermediate_size=64,
        num_hidden_layers=vision_layers,
        num_global_layers=1,
        image_size=28,
        intermediate_layers_indices=(0,),
    )
    return MllamaConfig(TEXT, vision, image_token_index=2048)


def peak_of(model, rows):
    with torch.enable_grad():
        return peak_of_step(Rehearsal(model, rows))


@exercise("bytes-of-a-parameter")
def bytes_of_a_parameter(answer):
    pair = LowRank(6, 5, 2, alpha=4)
    optimiser = torch.optim.AdamW(pair.parameters())
    with torch.enable_grad():
        pair(torch.ones(1, 6)).sum().backward()
    optimiser.step()
    state = [x for s in optimiser.state.values() for x in s.values() if x.dim()]
    kept = [*pair.parameters(), *(p.grad for p in pair.parameters()), *state]
    wanted = sum(x.nbytes for x in kept) / sum(p.numel() for p in pair.parameters())
    expect(answer != wanted / 4, "what does a step need besides the number itself?")
    expect(answer != wanted / 2, "what does AdamW remember?")
    expect(answer != wanted / 4 * 3, "how many averages does AdamW keep?")
    expect(answer == wanted, "number, gradient, optimiser: in which precision is each?")


@exercise("price-of-a-rank")
def price_of_a_rank(answer):
    model = empty_model(MllamaConfig())
    ranks = find_ranks(model, ("self", "mlp", "cross"), 64)
    layers = ((model.get_submodule(name), rank) for name, rank in ranks.items())
    size = sum(rank * (m.in_features + m.out_features) for m, rank in layers)
    expect(abs(answer - 4 * size / 2**30) > 0.06, "these are the matrices alone")
    expect(abs(answer - 2 * size / 2**30) > 0.06, "is this of rank 64, and all of it?")
    expect(
        abs(answer - 16 * size / 2**30) < 0.06,
        "what grows with the rank, and how fast?",
    )


@exercise("way-back")
def way_back(answer):
    expect(answer in ("a", "b", "c", "d"), "the answer is one of the letters a to d")
    kept = []
    for vision_layers in (1, 5):
        model = Mllama(tiny(vision_layers))
        add_adapter(model, ("self",), 4, report=None)
        peak = peak_of(model, [(40, 8, (4,))])
        kept.append(peak - sum(p.nbytes for p in model.parameters()))
    few, many = kept
    right = "d" if few == many else "a"  # whether deeper vision keeps more
    expect(answer == right, "what would a gradient there be for? Count two depths")


@exercise("longest-text")
def longest_text(longest):
    model = Mllama(tiny())
    add_adapter(model, ("self",), 4, report=None)

    def peak(length):
        return peak_of(model, [(length, 8, ())])

    asked = []

    def cost_of(length):
        asked.append(length)
        expect(length == int(length) and length > 16, "a text has 17 tokens or more")
        expect(length <= 512, f"it asks what {length:,} tokens cost, on a small card")
        expect(len(asked) <= 3, "it asks more than three times")
        return peak(length)

    for room in (peak(900), peak(3000) + 1000):
        asked.clear()
        length = longest(cost_of, room)
        expect(isinstance(length, int), f"it returns {length!r}, no whole number")
        expect(length > 16, f"it returns {length} tokens")
        expect(length < 10**5, f"it returns {length:,} tokens: far too many")
        off = peak(length) / room
        expect(off <= 1, f"a text of {length:,} tokens takes {off:.2f} of the room")
        expect(
            peak(length + length // 50) > room,
            f"a text of {length:,} tokens takes {off:.2f} of the room: more fit",
        )


@exercise("questions-to-tell")
def questions_to_tell(times):
    def part(right, other, asked, factor):
        low, high = sorted((right * factor, other * factor))
        return interval(low, asked * factor)[1] < interval(high, asked * factor)[0]

    cases = (22, 8, 76), (10, 3, 38), (14, 10, 38), (10, 14, 38), (9, 3, 38)
    for right, other, asked in cases:
        answer = times(right, other, asked)
        told = f"for {right} and {other} right of {asked} it returns {answer!r}"
        expect(isinstance(answer, int) and answer > 0, f"{told}: no whole number")
        expect(part(right, other, asked, answer), f"{told}: there they overlap")
        fewer = answer > 1 and part(right, other, asked, answer - 1)
        expect(not fewer, f"{told}: fewer are enough")


@exercise("designers-or-pictures")
def designers_or_pictures(runs):
    shown = [one for one in emoji.DESIGNERS if one != "noto"]
    expect(isinstance(runs, list) and len(runs) > 1, "expected a list of runs")
    for run in runs:
        expect(
            isinstance(run, (tuple, list)) and len(run) == 2,
            "a run is a pair: designers, and pictures of each of their drawings",
        )
        designers, pictures = run
        expect(not isinstance(designers, str), "designers are a tuple, also if one")
        expect("noto" not in designers, "one run learns from the designer it asks for")
        expect(set(designers) <= set(shown), f"who is {set(designers) - set(shown)}?")
        expect(
            type(pictures) is int and pictures > 0,
            "the pictures of a drawing are a whole number",
        )
    totals = {len(designers) * pictures for designers, pictures in runs}
    expect(len(totals) == 1, "runs differ in how many pictures of a thing they show")
    wanted = [set(c) for n in (1, 2, 3) for c in combinations(shown, n)]
    found = [set(designers) for designers, _ in runs]
    counts = {len(one) for one in found}
    expect(counts == {1, 2, 3}, f"tried are {sorted(counts)} designers")
    expect(
        all(one in found for one in wanted),
        "some number of designers is tried with some of them alone: are all of them "
        "equally good to learn from?",
    )
    expect(len(found) == len(wanted), "one choice of designers is there twice")
