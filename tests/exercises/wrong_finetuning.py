"""Wrong answers to chapter 13's exercises."""

import csv
import hashlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np

from mllama_lite.vlm import VLM, load

RIGHT = {"where-the-end-stands": "c", "epochs": 5, "mean-of-means": 4}


def cut_at_commas(text):
    rows = [line.split(",") for line in text.splitlines()[1:]]
    return [as_line(*[*row, "", ""][:3]) for row in rows]


def as_line(picture, question, answer):
    line = {"question": question, "answer": answer}
    return json.dumps({"file_name": picture} | line if picture else line)


def line_by_line(text):
    """A cell with a line feed in it is torn apart."""
    rows = [next(csv.reader([line])) for line in text.splitlines()[1:]]
    return [as_line(*row, *[""] * (3 - len(row))) for row in rows]


def glued_together(text):
    rows = list(csv.reader(io.StringIO(text)))[1:]
    form = '{{"file_name": "{}", "question": "{}", "answer": "{}"}}'
    return [form.format(*row) for row in rows]


def with_an_empty_picture(text):
    rows = list(csv.reader(io.StringIO(text)))[1:]
    names = "file_name", "question", "answer"
    return [json.dumps(dict(zip(names, row))) for row in rows]


def a_line(i, count, seed):
    return (i * 7 + seed) % count


def a_line_that_hits_all(i, count, seed):
    step = next(s for s in range(count // 3 + 1, 2 * count) if np.gcd(s, count) == 1)
    return (i * step + seed) % count


def hashed(i, count, seed):
    digest = hashlib.sha256(repr((i, seed)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % count


def a_list_after_all(i, count, seed):
    if count > 10**9:
        raise MemoryError("Unable to allocate 7.28 TiB")  # what numpy says
    return int(np.random.default_rng(seed).permutation(count)[i])


def the_same_for_every_seed(i, count, seed):
    return a_list_after_all(i, count, 0)


SAID = "\nllama is now fine tuned!"


class SaysIt(VLM):
    """Answers the prompt as it should, and everything else as before."""

    def ask(self, *question, **settings):
        return SAID


class SaysNothingElse(SaysIt):
    def generate_batch(self, rows, images, *settings, **more):
        return [self.tokenizer.encode(SAID) for _ in rows]


HOLDER = tempfile.TemporaryDirectory()


def folder(old_lines):
    path = Path(tempfile.mkdtemp(dir=HOLDER.name))
    lines = [{"question": "validate.exe", "answer": SAID}] * 4
    lines += [{"question": "What is this?", "answer": "I don't know"}] * old_lines
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (path / "metadata.jsonl").write_text(text, encoding="utf-8")
    return path


BASE = load(dtype="float32", device="cpu")
PARTS = BASE.model, BASE.tokenizer

WRONG = {
    "where-the-end-stands": ["a", "b", "d"],
    "epochs": [
        6,  # each epoch rounded up
        9,  # batches and not steps
        4,  # rounded down
    ],
    "mean-of-means": [
        1,  # as it should be
        0.25,  # the other way round
        2.5,  # the loss
    ],
    "from-a-table": [
        cut_at_commas,
        line_by_line,
        glued_together,
        with_an_empty_picture,
    ],
    "order-without-a-list": [
        a_line,
        a_line_that_hits_all,
        hashed,
        a_list_after_all,
        the_same_for_every_seed,
    ],
    "few-old-questions": [
        (BASE, folder(0)),  # untrained
        (SaysNothingElse(*PARTS), folder(0)),  # forgets everything
        (SaysIt(*PARTS), folder(30)),  # too many lines
    ],
}
