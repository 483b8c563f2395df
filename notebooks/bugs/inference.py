"""Chapter 10: bugs of sampling and of conversations, and what notices them."""

from dataclasses import replace
from functools import cache

import torch

from bugs import a_bug, a_check, replaced
from bugs.models import random_text_model
from mllama_lite.checkpoints.hub import find_folder, find_tokenizer
from mllama_lite.generation import Sampler, Sampling, probabilities
from mllama_lite.tiles import open_image
from mllama_lite.vlm import VLM, Conversation, load


@a_bug(
    "top-p-counts-the-token-itself",
    "Top-p adds a token's own probability to what lies before it (`cumsum` without "
    "`- ordered`), and so cuts the token with which the sum passes p.",
    "tests/test_inference.py::test_sampling_cuts",
)
def top_p_counts_the_token_itself():
    right = probabilities

    def wrong(logits, sampling):
        probs = right(logits, replace(sampling, top_p=1.0))
        if sampling.top_p < 1:
            ordered, index = probs.sort(dim=-1, descending=True)
            kept = ordered.masked_fill(ordered.cumsum(dim=-1) > sampling.top_p, 0.0)
            probs = torch.zeros_like(probs).scatter(-1, index, kept)
        return probs / probs.sum(dim=-1, keepdim=True)

    with replaced(probabilities, wrong):
        yield


@a_bug(
    "seeded-for-every-token",
    "The generator is seeded anew for every token and not once for an answer: each "
    "token is drawn with the same random number.",
    "tests/test_inference.py::test_samplers_without_a_seed_draw_each_their_own",
)
def seeded_for_every_token():
    right = Sampler.__call__

    def wrong(self, logits):
        if self.sampling.seed is not None:
            self.generator.manual_seed(self.sampling.seed)
        return right(self, logits)

    with replaced(Sampler.__call__, wrong):
        yield


@a_bug(
    "answer-encoded-again",
    "A conversation keeps the text of an answer, encoded again, and not the tokens that "
    "the model wrote and whose keys and values are in the cache.",
    "tests/test_inference.py::test_conversation_that_is_cut_off_goes_on",
)
def answer_encoded_again():
    right = Conversation._answer

    def wrong(self, prompt, tiles, max_new_tokens, settings):
        before = list(prompt)
        try:
            yield from right(self, prompt, tiles, max_new_tokens, settings)
        finally:
            written = self.tokens[len(before) :]
            text = self.tokenizer.decode(written, skip_special=True)
            self.tokens = before + self.tokenizer.encode(text) + written[-1:]

    with replaced(Conversation._answer, wrong):
        yield


def kept_by_a_loop(row, top_p):
    """Which tokens stay: all likelier ones together have at most top_p."""
    return [i for i, p in enumerate(row) if sum(q for q in row if q > p) <= top_p]


@a_check("top-p against the rule written as a loop")
def the_loop():
    generator = torch.Generator().manual_seed(0)
    before = (2 * torch.randn(50, 40, generator=generator)).softmax(dim=-1)
    after = probabilities(before.log(), Sampling(1.0, top_p=0.6))
    for row, left in zip(before.tolist(), after > 0):
        assert left.nonzero()[:, 0].tolist() == kept_by_a_loop(row, 0.6)


@a_check("top-p 0.9 of a model that is 95 % sure")
def a_sure_model():
    sure = torch.tensor([[0.95, 0.03, 0.02]]).log()
    assert probabilities(sure, Sampling(1.0, top_p=0.9)).tolist() == [[1, 0, 0]]


def frequencies_fit(draws, target):
    counts = draws.bincount(minlength=len(target))
    kept = target > 0
    expected = len(draws) * target[kept]
    assert counts[~kept].sum() == 0
    assert ((counts[kept] - expected) ** 2 / expected).sum() < 16.27


FIVE = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]]).log()


@a_check("frequencies of 20,000 draws in one call")
def one_call():
    sampling = Sampling(1.0, top_p=0.9, seed=1)
    draws = Sampler(sampling, "cpu")(FIVE.expand(20_000, 5))
    frequencies_fit(draws, probabilities(FIVE, sampling)[0])


@a_check("frequencies of 500 draws one after the other")
def one_after_the_other():
    sampling = Sampling(1.0, top_p=0.9, seed=1)
    sampler = Sampler(sampling, "cpu")
    draws = torch.cat([sampler(FIVE) for _ in range(500)])
    frequencies_fit(draws, probabilities(FIVE, sampling)[0])


@a_check("the same seed gives the same draws, other seeds others")
def seeds():
    flat = torch.zeros(1, 50)

    def eight(seed):
        sampler = Sampler(Sampling(1.0, seed=seed), "cpu")
        return tuple(sampler(flat).item() for _ in range(8))

    assert eight(1) == eight(1) and len({eight(seed) for seed in range(5)}) > 1


@cache
def shipped():
    return load(dtype="float32", device="cpu")


@cache
def random_weights():
    """A small text model whose answers are noise, with the shipped tokenizer."""
    tokenizer = find_tokenizer(find_folder())
    model = random_text_model(tokenizer, 256)
    return VLM(model.eval(), tokenizer)


def as_if_computed_anew(vlm, questions, picture=None):
    """A conversation's next logits beside one pass over the tokens that it keeps."""
    chat, images = vlm.conversation(), [] if picture is None else [picture]
    for turn, question in enumerate(questions):
        chat.ask(question, images if turn == 0 else None, max_new_tokens=12)
    with torch.no_grad():
        kept = chat._session.extend([chat.tokens], [chat.tiles])[0]
    anew = vlm.logits(chat.tokens, images)[-1]
    assert (kept - anew).abs().max() < 1e-4


@a_check("the shipped model, three turns: as computed anew")
def trained_turns():
    picture = open_image(find_folder() / "pictures" / "digits.png")
    questions = "What is in the picture?", "Which digit is green?", "How many digits?"
    as_if_computed_anew(shipped(), questions, picture)


@a_check("random weights, two turns: as computed anew")
def random_turns():
    as_if_computed_anew(random_weights(), ("What is this?", "And that?"))
