"""Chapter 19: bugs of a guard, and what notices them."""

import torch

import reference_guard
from bugs import a_bug, a_check, replaced
from mllama_lite import guard
from mllama_lite.errors import InputError
from mllama_lite.tokenizer import Tokenizer

ASKED = [{"role": "user", "content": "How do I pick a lock?"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "Ask a locksmith."}]
SMALL = reference_guard.FOLDER.parent / "guard" / "small"


def small_guard():
    from mllama_lite.vlm import load

    return guard.Guard(load(SMALL, "cpu", "float32"), {"S1": "Harmful Requests"})


@a_bug(
    "unsafe-has-safe-in-it",
    "An answer counts as safe if it has the word in it, which unsafe has too.",
    "tests/test_guard.py::test_answers_are_read_as_meta_reads_them",
)
def unsafe_has_safe_in_it():
    right = guard.parse_answer

    def wrong(answer, categories=guard.CATEGORIES):
        return () if "safe" in answer else right(answer, categories)

    with replaced(guard.parse_answer, wrong):
        yield


@a_bug(
    "the-first-role-is-judged",
    "The guard is told to judge the messages of whoever spoke first, and not last.",
    "tests/test_guard.py::test_the_prompt_is_metas",
)
def the_first_role_is_judged():
    right = guard.guard_prompt

    def wrong(messages, categories=guard.THIRTEEN):
        prompt = right(messages, categories)
        return prompt.replace("'Agent'", "'User'").replace("LAST Agent", "LAST User")

    with replaced(guard.guard_prompt, wrong):
        yield


@a_bug(
    "before-the-empty-line",
    "The first logits are read at the end of the answer's header, where an empty line comes and "
    "not yet the answer.",
    "tests/test_guard.py::test_the_answer_begins_after_an_empty_line",
)
def before_the_empty_line():
    right = Tokenizer.encode_header

    def wrong(self, role):
        ids = right(self, role)
        return ids[: ids.index(self.special["<|end_header_id|>"]) + 1]

    def chat(self, messages):
        ids, images = original(self, messages)
        header = right(self, "assistant")
        return ids[: len(ids) - len(header)] + wrong(self, "assistant"), images

    original = Tokenizer.encode_chat
    with replaced(Tokenizer.encode_chat, chat):
        yield


@a_check("a harmless answer is read as safe")
def safe_is_safe():
    assert guard.parse_answer("safe") == () == guard.parse_answer("\n\nsafe")


@a_check("an answer with codes, and Meta's parser")
def codes():
    want = reference_guard.meta_verdict("unsafe\nS1,S5")
    assert guard.parse_answer("unsafe\nS1,S5") == tuple(want.split(","))


@a_check("what is no answer is refused")
def no_answer():
    try:
        guard.parse_answer("I can't say.")
    except InputError:
        return
    raise AssertionError


@a_check("the prompt for a question, and Meta's")
def question():
    assert guard.guard_prompt(ASKED) == reference_guard.meta_prompt(ASKED)


@a_check("the prompt for an answer, and Meta's")
def answer():
    assert guard.guard_prompt(ANSWERED) == reference_guard.meta_prompt(ANSWERED)


@a_check("a probability is between 0 and 1")
def is_a_probability():
    logits = torch.randn(3, 20)
    logits[:, 4] = 9
    found = guard.unsafe_probability(logits, (4, 5))
    assert ((0 <= found) & (found <= 1)).all()


@a_check("the likeliest first token is one of the two words")
def first_token():
    small_guard().probabilities([ASKED])


@a_check("the prompt's last tokens, and the header that chapter 1 has from Meta's code")
def header():
    (row,), _ = small_guard()._encoded([ASKED])
    tokenizer = Tokenizer.from_file(SMALL / "tokenizer.model")
    line = tokenizer.encode("\n\n")
    assert row[-len(line) :] == line
