"""Checks of chapter 11's exercises."""

from fractions import Fraction

import numpy as np
import torch

from exercises import exercise, expect
from mllama_lite.small_model.evaluation import interval
from mllama_lite.small_model.first_values import make_ranks
from mllama_lite.small_model.questions import WORDINGS, ask
from mllama_lite.small_model.scenes import draw_scene, load_masks
from mllama_lite.small_model.training import encode_turns
from mllama_lite.tokenizer import Tokenizer


@exercise("gates-recall")
def gates_recall(answer):
    expect(answer in ("a", "b", "c", "d"), "choose a letter from a to d")
    gate, behind = (torch.tensor(x, requires_grad=True) for x in (0.0, 0.7))
    moving = []
    with torch.enable_grad():
        for _ in range(2):
            (gate.tanh() * behind - 1).square().backward()
            moving.append((bool(gate.grad), bool(behind.grad)))
            with torch.no_grad():
                for number in (gate, behind):
                    number -= 0.1 * number.grad
                    number.grad = None
    told = {
        "a": [(True, True), (True, True)],
        "b": [(True, False), (True, True)],
        "c": [(False, True), (True, True)],
        "d": [(True, False), (True, False)],
    }[answer]
    expect(told == moving, "multiply by tanh(0), then by tanh of a small number")


@exercise("guess-count")
def guess_count(answer):
    """Of every 32 pictures, how many have each number of things?"""
    pictures = [n for n in (1, 2, 3, 4) for _ in range(7)] + [1, 1, 2, 2]
    best = max(Fraction(pictures.count(n), len(pictures)) for n in (1, 2, 3, 4))
    expect(abs(answer - Fraction(1, 4)) > 1e-3, "some pictures never have four things")
    expect(abs(answer - best) < 1e-3, "count it out for 32 pictures")


@exercise("enough-questions")
def enough_questions(answer):
    expect(answer == int(answer) > 0, "it is a number of questions")

    def wide(count):
        low, high = interval(round(0.95 * count), count)
        return high - low

    expect(wide(answer) <= 0.02 * 1.005, f"it is still {wide(answer):.4f} wide")
    expect(wide(0.93 * answer) > 0.02, "far fewer would do")


def _tokens_of(texts, tokenizer, scene_seed):
    """A conversation of so many questions about one scene, with its labels."""
    rng, masks = np.random.default_rng(scene_seed), load_masks("train")
    scene, questions = draw_scene(rng, masks, 3), []
    while len(questions) < texts:
        kind = list(WORDINGS)[rng.integers(len(WORDINGS))]
        if question := ask(rng, scene, kind):
            questions.append(question)
    return encode_turns(tokenizer, questions)


@exercise("which-labels")
def which_labels(labels_of):
    tokenizer = Tokenizer(make_ranks())
    for seed, turns in ((0, 1), (1, 2), (2, 3)):
        tokens, wanted = _tokens_of(turns, tokenizer, seed)
        got = [int(label) for label in labels_of(list(tokens), tokenizer)]
        expect(len(got) == len(tokens), f"{len(tokens)} tokens get {len(got)} labels")
        ends = tokenizer.special["<|eot_id|>"]
        expect(ends in got, "nothing teaches it to stop")
        off = sum(a != b for a, b in zip(got, wanted))
        expect(
            got != [-100] + wanted[:-1],
            "a label stands where its own token is, and not where it is to be predicted",
        )
        expect(
            off == 0, f"with {turns} questions, {off} of {len(tokens)} labels differ"
        )


@exercise("new-kind")
def new_kind(ask_largest):
    masks, asked = load_masks("train"), 0
    for seed in range(200):
        scene = draw_scene(np.random.default_rng(seed), masks)
        result = ask_largest(np.random.default_rng(0), scene)
        digits = [int(thing.kind) for thing in scene.digits]
        if not digits:
            expect(result is None, "it asks where there is no digit")
            continue
        if result is None:
            continue
        asked += 1
        slots, told = result
        expect(slots == {}, "the wording has no gaps, so there is nothing to fill")
        expect(isinstance(told, str), f"the answer is {told!r}, and not text")
        expect(told == str(max(digits)), f"of {digits} it says {told}")
    expect(asked >= 100, f"it asks on {asked} of 200 pictures only")
