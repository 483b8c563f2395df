# Generated from notebooks/20_alignment.ipynb: edit there, or here and run `make update`.
"""From records to what is trained on: tokens with places for pictures, and questions.

Built in chapter 20, notebooks/20_alignment.ipynb. A language model that has read
nothing but text is spoken to in text: a document begins, pictures stand where tokens
would, a question is a line, and the answer ends the document.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from mllama_lite.alignment.captions import PLACE, Record
from mllama_lite.errors import InputError
from mllama_lite.tokenizer import Tokenizer


IMAGE = -1  # in tokens: here are a picture's vectors
KINDS = ("what", "yes or no", "which", "describe")


@dataclass(frozen=True)
class Example:
    """A record as tokens.

    Attributes:
        images: paths, in the order of their places.
        tokens: list of T ids; a picture's place is IMAGE.
        labels: list of T ids: the next token where it is part of an answer, else -100.
    """

    images: tuple[Path, ...]
    tokens: list[int]
    labels: list[int]


def encode_record(record: Record, tokenizer: Tokenizer, length: int = 256) -> Example:
    """A record with the answers' tokens, and the end of each, as labels.

    Args:
        record: Record.
        tokenizer: Tokenizer.
        length: tokens that it may have, a picture counted as one.

    Returns:
        Example.

    Raises:
        InputError: it is longer.
    """
    end = tokenizer.special["<|end_of_text|>"]
    tokens, learned = [end], [-100]  # where a document begins
    for message in record.messages:
        if message["role"] == "assistant":
            text = message["content"]
            # After a question's colon there is a space; a caption begins a document.
            spoken = any(m["content"] != PLACE for m in record.messages[:-1])
            ids = [*tokenizer.encode(" " * spoken + text), end]
            tokens, learned = tokens + ids, learned + ids
            continue
        ids = question_tokens(message["content"], tokenizer, message["role"] == "user")
        tokens, learned = tokens + ids, learned + [-100] * len(ids)
    if len(tokens) > length:
        raise InputError(
            f"{record.where} has {len(tokens)} tokens: expected at most {length}; make "
            "it shorter, or leave it out."
        )
    # The last token is where the document ends: nothing is learned after it.
    return Example(record.images, tokens[:-1], learned[1:])


def question_tokens(text: str, tokenizer: Tokenizer, asked: bool = True) -> list[int]:
    """Tokens of what is given: pictures first where they stand, and a question as a line.

    Args:
        text: with PLACE for each picture.
        tokenizer: Tokenizer.
        asked: whether an answer follows.

    Returns:
        list of ids and IMAGE.
    """
    if text == PLACE:
        return [IMAGE]
    ids: list[int] = []
    before, *after = text.split(PLACE)
    if not before.strip():  # LLaVA's pictures stand before the question
        ids = [IMAGE] * min(len(after), 1)
        before, after = after[0] if after else "", after[1:]
    first, last = ("\nQuestion: ", "\nAnswer:") if asked else ("\n", "")
    ids += tokenizer.encode(first + before.strip())
    for piece in after:
        ids.append(IMAGE)
        ids += tokenizer.encode(piece.rstrip())
    return ids + tokenizer.encode(last)


def questions(
    records: Sequence[Record], others: Sequence[str], seed: int
) -> list[Record]:
    """Four templated questions on each captioned picture, from its caption alone.

    Args:
        records: with `concept` in `about`.
        others: concepts that a picture could be asked about and does not show.
        seed: of what is asked; the same picture is always asked the same.

    Returns:
        list of Record, four for each, with `kind` in `about`: one of KINDS.

    Raises:
        InputError: a record has no concept, or there is nothing else to ask about.
    """
    if len(set(others)) < 2:
        raise InputError(
            f"There are {len(set(others))} concepts to ask about: expected 2 or more; "
            "give more pictures."
        )
    made = []
    for record in records:
        if "concept" not in record.about:
            raise InputError(
                f"{record.where} has no concept: expected the noun that names what is "
                "shown; add it, or give conversations."
            )
        concept, caption = record.about["concept"], record.caption
        draw = random.Random(f"{seed} {record.where} {caption}")
        other = concept
        while other == concept or other in caption.split():
            other = draw.choice(others)
        true = draw.random() < 0.5
        pair = [concept, other] if draw.random() < 0.5 else [other, concept]
        asked = concept if true else other
        for kind, question, answer in (
            ("what", "What is it?", caption),
            ("yes or no", f"Is it {article(asked)}?", "yes" if true else "no"),
            ("which", f"Is it {article(pair[0])} or {article(pair[1])}?", concept),
            ("describe", "Describe the picture.", f"a picture of {article(caption)}"),
        ):
            messages = (
                {"role": "user", "content": f"{PLACE}{question}"},
                {"role": "assistant", "content": answer},
            )
            about = record.about | {"kind": kind, "other": other}
            made.append(Record(record.where, record.images, messages, about))
    return made


def article(name: str) -> str:
    """A name with "a" or "an" before it, by its first letter."""
    return ("an " if name[:1] in "aeiou" else "a ") + name


def without_images(example: Example) -> Example:
    """The same conversation, as it is with nothing shown."""
    tokens: list[int] = []
    labels: list[int] = []
    for token, label in zip(example.tokens, example.labels):
        if token == IMAGE:
            labels[-1] = label  # predicted from what stands before it
        else:
            tokens.append(token)
            labels.append(label)
    return Example((), tokens, labels)


@dataclass
class Batch:
    """Several examples side by side.

    Attributes:
        embeddings: [B, T, D], padded on the right with zeros.
        labels: int [B, T], -100 on the padding, and on all of a picture but its last
            vector, from which what follows is predicted.
    """

    embeddings: torch.Tensor
    labels: torch.Tensor


def make_batch(
    examples: Sequence[Example], embedding: torch.nn.Embedding, images: torch.Tensor
) -> Batch:
    """Put each picture's vectors where its place is.

    Args:
        examples: list of B Example.
        embedding: the language model's.
        images: [N, m, D], of all examples' pictures in order.

    Returns:
        Batch.
    """
    device, few = embedding.weight.device, images.shape[1]
    rows, labels, left = [], [], iter(images)
    for example in examples:
        ids = torch.tensor(example.tokens, device=device)
        hidden = embedding(ids.clamp(min=0))  # [T, D]
        pieces, learned = [], []
        for place, label in enumerate(example.labels):
            if example.tokens[place] == IMAGE:
                pieces.append(next(left).to(hidden.dtype))
                learned += [-100] * (few - 1)
            else:
                pieces.append(hidden[place : place + 1])
            learned.append(label)
        rows.append(torch.cat(pieces))
        labels.append(torch.tensor(learned, device=device))
    padded = pad_sequence(rows, batch_first=True)  # [B, T, D]
    return Batch(padded, pad_sequence(labels, True, -100))
