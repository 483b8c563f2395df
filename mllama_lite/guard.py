# Generated from notebooks/19_guard.ipynb: edit there, or here and run `make update`.
"""A filter: Llama Guard's question and answer, and a model that is read before and after.

Built in chapter 19, notebooks/19_guard.ipynb. What a filter is worth is measured in
guard_probes.py.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mllama_lite.errors import InputError, shown
from mllama_lite.files import parse_json, read_bytes
from mllama_lite.generation import Sampling, generate
from mllama_lite.tiles import open_image
from mllama_lite.tokenizer import ImagePart, Tokenizer
from mllama_lite.vlm import VLM, Picture


CATEGORIES = {
    "S1": "Violent Crimes",
    "S2": "Non-Violent Crimes",
    "S3": "Sex Crimes",
    "S4": "Child Exploitation",
    "S5": "Defamation",
    "S6": "Specialized Advice",
    "S7": "Privacy",
    "S8": "Intellectual Property",
    "S9": "Indiscriminate Weapons",
    "S10": "Hate",
    "S11": "Self-Harm",
    "S12": "Sexual Content",
    "S13": "Elections",
    "S14": "Code Interpreter Abuse",
}
THIRTEEN = {code: name for code, name in CATEGORIES.items() if code != "S14"}
SPEAKERS = {"user": "User", "assistant": "Agent"}
LONGEST_ANSWER = 40  # tokens
Messages = Sequence[Mapping[str, Any]]


def guard_prompt(messages: Messages, categories: Mapping[str, str] = THIRTEEN) -> str:
    """What a guard is asked about a conversation, of which the last message is judged.

    Args:
        messages: dicts with "role" and "content", as `encode_chat` takes them; user and
            assistant in turn, a user first. Images in them are not shown in the text.
        categories: dict from a code to its name, S14 only for Llama Guard 3 8B, or
            one's own.

    Returns:
        str.

    Raises:
        InputError: no message; other roles, or not in turn; no text, or several.

    Source: llama_stack/providers/inline/safety/llama_guard/llama_guard.py,
    `build_prompt`, which writes Assistant where Meta's documentation has Agent.
    """
    if not messages or not categories:
        raise InputError(
            f"There are {len(messages)} messages and {len(categories)} categories for "
            "the guard: expected one or more of each; add some."
        )
    said = [_said(message, number) for number, message in enumerate(messages)]
    listed = "\n".join(f"{code}: {name}." for code, name in categories.items())
    talk = "\n\n".join(f"{speaker}: {text}" for speaker, text in said)
    judged = said[-1][0]
    return (
        f"Task: Check if there is unsafe content in '{judged}' messages in "
        "conversations according our safety policy with the below categories.\n\n"
        f"<BEGIN UNSAFE CONTENT CATEGORIES>\n{listed}\n"
        "<END UNSAFE CONTENT CATEGORIES>\n\n"
        f"<BEGIN CONVERSATION>\n\n{talk}\n\n<END CONVERSATION>\n\n"
        f"Provide your safety assessment for ONLY THE LAST {judged} message in the "
        "above conversation:\n"
        " - First line must read 'safe' or 'unsafe'.\n"
        " - If unsafe, a second line must include a comma-separated list of violated "
        "categories."
    )


def _said(message: Mapping[str, Any], number: int) -> tuple[str, str]:
    """(speaker, text) of a message, which is the user's if its number is even."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [content]
    texts = [part for part in parts if isinstance(part, str)]
    others = [part for part in parts if not isinstance(part, (str, ImagePart))]
    role = "assistant" if number % 2 else "user"
    if message.get("role") != role or len(texts) != 1 or others:
        raise InputError(
            f"Message {number} for the guard is {shown(dict(message))}: expected one of "
            f"the {role}, with one text and perhaps an ImagePart; the user begins, and "
            "they take turns."
        )
    return SPEAKERS[role], texts[0]


def guard_message(
    messages: Messages, categories: Mapping[str, str] = THIRTEEN
) -> dict[str, Any]:
    """The one message that a guard gets: `guard_prompt`, after the image if there is one.

    With an image it is written as the chat template of Meta's smaller guards has it: an
    empty space before and after, and texts without the spaces at their ends.

    Returns:
        dict for `encode_chat`.

    Raises:
        InputError: see `guard_prompt`; more than one image, of which a guard reads one.
    """
    contents = [m.get("content") for m in messages]
    lists = [c for c in contents if isinstance(c, list)]
    images = [part for c in lists for part in c if isinstance(part, ImagePart)]
    if len(images) > 1:
        raise InputError(
            f"The conversation has {len(images)} images: expected at most one, which "
            "is what Llama Guard reads; judge them one at a time."
        )
    if not images:
        return {"role": "user", "content": guard_prompt(messages, categories)}
    texts = [
        _said(message, number)[1].strip() for number, message in enumerate(messages)
    ]
    plain = [{**m, "content": text} for m, text in zip(messages, texts)]
    prompt = f" {guard_prompt(plain, categories)} "
    return {"role": "user", "content": [images[0], prompt]}


def parse_answer(
    answer: str, categories: Mapping[str, str] = CATEGORIES
) -> tuple[str, ...]:
    """The codes that an answer of a guard names; none if it says safe.

    Args:
        answer: "safe", or "unsafe" and on a second line codes with commas between them.
        categories: that it was asked about.

    Returns:
        tuple of codes.

    Raises:
        InputError: it is anything else. What a guard did not say is not taken for safe.

    Source: llama_guard.py, `get_shield_response`, which lets any second line pass.
    """
    text = answer.strip()
    if text == "safe":
        return ()
    found = re.fullmatch(r"unsafe\n(\w+(?:, ?\w+)*)", text)
    codes = tuple(re.split(", ?", found[1])) if found else ()
    if not codes or not set(codes) <= set(categories):
        raise InputError(
            f"The guard's answer is {shown(answer)}: expected safe, or unsafe and below "
            f"it some of {', '.join(categories)}; is this model a guard, and are these "
            "its categories?"
        )
    return codes


def first_words(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids of the first tokens of "safe" and "unsafe", by which an answer is known."""
    safe, unsafe = (tokenizer.encode(word)[0] for word in ("safe", "unsafe"))
    if safe == unsafe:
        raise InputError(
            f"The tokenizer begins safe and unsafe with one token, {safe}: expected "
            "two; use a guard's own tokenizer."
        )
    return safe, unsafe


def unsafe_probability(logits: torch.Tensor, words: tuple[int, int]) -> torch.Tensor:
    """How probable the answer "unsafe" is beside "safe", from the answer's first logits.

    Args:
        logits: [B, W], where the answer begins: after the header and its empty line.
        words: from `first_words`.

    Returns:
        fp32 [B].

    Raises:
        InputError: another token than these two is the likeliest.
    """
    two = logits.float()[:, list(words)]  # [B, 2]
    if (logits.float().amax(-1) > two.amax(-1)).any():
        raise InputError(
            "The model's answer begins with neither safe nor unsafe: expected one of "
            "them; is this model a guard?"
        )
    return two.softmax(-1)[:, 1]


@dataclass(frozen=True)
class Judgement:
    """What a guard says of a message.

    Attributes:
        unsafe: whether the probability is above the threshold.
        probability: of "unsafe".
        categories: codes, where it is unsafe.
    """

    unsafe: bool
    probability: float
    categories: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What comes of a question that was asked under guard.

    Attributes:
        answer: text, or None if something was refused.
        refused: "question" or "answer", or None.
        judgements: of each image with the question, or of the question, and of the
            answer, as far as it went.
    """

    answer: str | None
    refused: str | None
    judgements: tuple[Judgement, ...]


class Guard:
    """A model that reads what others ask and answer.

    Args:
        vlm: VLM, with a tokenizer: Llama Guard 3 1B, 8B or 11B-Vision, or a small one.
        categories: that it is asked about.
        threshold: it is unsafe above this probability; 0.5 is the model's own word.

    Raises:
        InputError: no tokenizer; a threshold that is none.
    """

    def __init__(
        self,
        vlm: VLM,
        categories: Mapping[str, str] = THIRTEEN,
        threshold: float = 0.5,
    ) -> None:
        if vlm.tokenizer is None:
            raise InputError(
                "The guard's folder has no tokenizer: expected one, for reading text; "
                "add its tokenizer.model or tokenizer.json."
            )
        if not (type(threshold) in (int, float) and 0 <= threshold <= 1):
            raise InputError(
                f"The threshold is {shown(threshold)}: expected a probability, from 0 to "
                "1; change it."
            )
        self.vlm, self.tokenizer = vlm, vlm.tokenizer
        self.categories, self.threshold = dict(categories), threshold
        self.words = first_words(self.tokenizer)

    @torch.no_grad()
    def probabilities(self, talks: Sequence[Messages]) -> list[float]:
        """How probable "unsafe" is for each of several conversations, in one pass."""
        rows, images = self._encoded(talks)
        tiles = self.vlm._prepared(rows, images, 0)[1]
        session = self.vlm.session(self.vlm.model, len(rows), max(map(len, rows)))
        logits = session.extend(rows, tiles)
        return unsafe_probability(logits, self.words).tolist()

    @torch.no_grad()
    def judge(self, messages: Messages) -> Judgement:
        """Whether the last message of a conversation is unsafe, and why.

        Below a probability of a half the model itself would have said safe. Where the
        threshold is lower, it is made to go on after "unsafe".
        """
        (probability,) = self.probabilities([messages])
        if not probability > self.threshold:
            return Judgement(False, probability)
        (row,), (images,) = self._encoded([messages])
        row += self.tokenizer.encode("unsafe\n")
        tiles = self.vlm._prepared([row], [images], LONGEST_ANSWER)[1]
        stops = self.tokenizer.stop_ids
        steps = generate(
            self.vlm.model, [row], tiles, LONGEST_ANSWER, stops, Sampling()
        )
        rest = [id for (id,) in steps if id is not None]
        answer = "unsafe\n" + self.tokenizer.decode(rest, skip_special=True)
        return Judgement(True, probability, parse_answer(answer, self.categories))

    def ask(
        self,
        vlm: VLM,
        question: str,
        images: Picture | Sequence[Picture] | None = None,
        unseen_images: bool = False,
        **settings: Any,
    ) -> Reply:
        """`vlm.ask`, with the question judged before it and the answer after it.

        Args:
            vlm: VLM that answers.
            question, images: see `VLM.ask`. Each image is judged with the question.
            unseen_images: let images pass that a guard without eyes cannot judge.
            **settings: see `VLM.ask`.

        Returns:
            Reply.

        Raises:
            InputError: see `VLM.ask` and `parse_answer`; images for a guard without
                eyes.
        """
        given: list[Any] = list(images) if isinstance(images, (list, tuple)) else []
        given = given or ([] if images is None else [images])
        if given and self.vlm.config.vision is None:
            if not unseen_images:
                raise InputError(
                    f"There are {len(given)} images, and the guard reads text only: "
                    "expected a guard with eyes; or let them pass unseen."
                )
            shown_to_guard: list[Any] = []
        else:
            shown_to_guard = [ImagePart(open_image(image)) for image in given]
        asked: list[Any] = [[image, question] for image in shown_to_guard]
        asked = asked or [question]
        talks = [[{"role": "user", "content": content}] for content in asked]
        judgements = []
        for talk in talks:
            judgements.append(self.judge(talk))
            if judgements[-1].unsafe:
                return Reply(None, "question", tuple(judgements))
        answer = vlm.ask(question, images, **settings)
        for talk in talks:
            judgements.append(
                self.judge([*talk, {"role": "assistant", "content": answer}])
            )
            if judgements[-1].unsafe:
                return Reply(None, "answer", tuple(judgements))
        return Reply(answer, None, tuple(judgements))

    def _encoded(
        self, talks: Sequence[Messages]
    ) -> tuple[list[list[int]], list[list[Any]]]:
        """(rows of ids, images) of what the guard is asked about conversations."""
        asked = [guard_message(talk, self.categories) for talk in talks]
        pairs = [self.tokenizer.encode_chat([message]) for message in asked]
        return [ids for ids, _ in pairs], [images for _, images in pairs]


def read_categories(path: str | Path) -> dict[str, str]:
    """Categories of one's own, from a JSON file: an object from codes to names.

    Raises:
        InputError: it is something else.
    """
    found = parse_json(read_bytes(path, 10**6), path)
    fits = all(
        re.fullmatch(r"\w+", code) and isinstance(name, str) and name.strip()
        for code, name in found.items()
    )
    if not found or not fits:
        raise InputError(
            f"{path} has {shown(found)}: expected codes as S1, each with a name; correct "
            "it."
        )
    return found
