# Generated from notebooks/20_alignment.ipynb: edit there, or here and run `make update`.
"""What a picture is worth: the loss with it, with another, without; retrieval; captions.

Built in chapter 20, notebooks/20_alignment.ipynb. A language model that ignores its
pictures writes captions too, and good ones by chance. So every number stands beside the
one with a wrong picture and with none.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mllama_lite.alignment.captions import Record
from mllama_lite.alignment.examples import encode_record, without_images
from mllama_lite.alignment.speakers import Speaker
from mllama_lite.errors import InputError
from mllama_lite.resumable import quick_arithmetic


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """The items, so many at a time."""
    for first in range(0, len(items), size):
        yield items[first : first + size]


@torch.no_grad()
def measure(
    speaker: Speaker, records: Sequence[Record], seed: int = 0, batch: int = 32
) -> dict[str, float]:
    """The loss with the right picture, with another one's, and with none.

    Args:
        speaker: Speaker.
        records: with one picture each, two of them at least with different answers.
        seed: of which other picture it is.
        batch: records at once.

    Returns:
        dict from "right", "wrong" and "none" to nats a token, with the end's.
    """
    others = wrong_pictures(records, seed)
    sums, count = {"right": 0.0, "wrong": 0.0, "none": 0.0}, 0
    for some in batches(list(zip(records, others)), batch):
        examples = [encode_record(record, speaker.tokenizer) for record, _ in some]
        shown = {
            "right": speaker.see([record.images[0] for record, _ in some]),
            "wrong": speaker.see([other for _, other in some]),
        }
        with quick_arithmetic(speaker.device):
            for name, images in shown.items():
                losses, counts = speaker.losses(examples, images)
                sums[name] += losses.sum().item()
            bare = [without_images(example) for example in examples]
            sums["none"] += speaker.losses(bare, speaker.see([]))[0].sum().item()
        count += int(counts.sum())
    return {name: value / count for name, value in sums.items()}


def wrong_pictures(records: Sequence[Record], seed: int) -> list[Path]:
    """For each record the picture of another whose answer and concept are others."""
    draw, found = np.random.default_rng([seed, 3]), []
    for record in records:
        mine = record.about.get("concept", record.caption)
        others = [
            other.images[0]
            for other in (records[i] for i in draw.permutation(len(records))[:64])
            if other.caption != record.caption
            and other.about.get("concept", other.caption) != mine
        ]
        if not others:
            raise InputError(
                f"{record.where} is like all others: expected pictures of several "
                "things; give more."
            )
        found.append(others[0])
    return found


@torch.no_grad()
def retrieval(
    speaker: Speaker, records: Sequence[Record], batch: int = 64
) -> dict[str, dict[str, float]]:
    """Among the captions of N pictures, where each picture's own stands by loss.

    Args:
        speaker: Speaker.
        records: N, with one picture and a different caption each.
        batch: captions at once.

    Returns:
        dict from "by loss" and "by gain" (the loss less what the caption costs without a
        picture: a frequent caption is no better for that) to `first` and `first five`,
        shares of N, and `rank`, the mean, from 1.
    """
    examples = [encode_record(record, speaker.tokenizer) for record in records]
    with quick_arithmetic(speaker.device):
        bare = [without_images(example) for example in examples]
        nothing = speaker.see([])
        alone = torch.cat(
            [speaker.losses(some, nothing)[0] for some in batches(bare, batch)]
        )
        rows = []
        for record in records:
            one = speaker.see(record.images)
            costs = [
                speaker.losses(some, one.expand(len(some), -1, -1))[0]
                for some in batches(examples, batch)
            ]
            rows.append(torch.cat(costs))
    table = torch.stack(rows)  # [pictures, captions]
    return {"by loss": ranks(table), "by gain": ranks(table - alone)}


def ranks(costs: torch.Tensor) -> dict[str, float]:
    """How early the diagonal comes in each row: see `retrieval`."""
    better = (costs < costs.diagonal()[:, None]).sum(1) + 1.0
    return {
        "first": (better == 1).float().mean().item(),
        "first five": (better <= 5).float().mean().item(),
        "rank": better.mean().item(),
    }


def answered(speaker: Speaker, records: Sequence[Record]) -> dict[str, float]:
    """Of each kind of question, the share that is answered to the letter."""
    right: dict[str, list[bool]] = {}
    for record in records:
        got = speaker.write(record.images, record.messages[0]["content"])
        right.setdefault(record.about["kind"], []).append(got == record.caption)
    return {kind: sum(of) / len(of) for kind, of in right.items()}
