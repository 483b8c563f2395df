"""Checks of chapter 13's exercises."""

import csv
import io
import json
from functools import cache
from pathlib import Path

import torch

from exercises import exercise, expect
from mllama_lite.adapters.data import encode_sample, indices_of_step, read_line
from mllama_lite.checkpoints.hub import find_folder, find_tokenizer
from mllama_lite.small_model.evaluation import answers, held_out
from mllama_lite.vlm import load


@exercise("where-the-end-stands")
def where_the_end_stands(answer):
    tokenizer = find_tokenizer(find_folder())
    messages = [
        {"role": "user", "content": "Which digit?"},
        {"role": "assistant", "content": "4"},
    ]
    tokens, labels = encode_sample(tokenizer, messages, num_images=1)
    end = tokenizer.special["<|eot_id|>"]
    of_the_question, of_the_answer = (i for i, t in enumerate(tokens) if t == end)
    before = of_the_answer - 1 - len(tokenizer.encode("4"))
    letters = {
        "a": of_the_question,
        "b": before,
        "c": of_the_answer - 1,
        "d": of_the_answer,
    }
    expect(answer in letters, "choose one of the letters")
    place = letters[answer]
    expect(place != of_the_question, "is the end of a question learned?")
    expect(place != before, "what is to be predicted there is the 4")
    expect(place != of_the_answer, "a label is what follows its place")
    expect(labels[place] == end, "what is to be predicted there?")


@exercise("epochs")
def epochs(answer):
    expect(isinstance(answer, int) and 0 < answer < 100, "a whole number of steps")
    steps = [indices_of_step(step, 4 * 2, 11, epochs=3) for step in range(answer)]
    seen = sum(map(len, steps))
    expect(seen == 3 * 11, f"in so many steps {seen} samples are seen")
    expect(all(steps), f"{sum(not step for step in steps)} of the steps have no sample")


@exercise("mean-of-means")
def mean_of_means(answer):
    with torch.enable_grad():
        short, long = (torch.ones(n, requires_grad=True) for n in (2, 8))
        torch.stack([short.mean(), long.mean()]).mean().backward()
    times = (short.grad[0] / long.grad[0]).item()
    expect(answer != 1, "so it is if the two sums are divided by all ten")
    expect(
        answer != 1 / times, "that is a token of the long batch, beside a short one's"
    )
    expect(answer == times, "by what is the loss of each token divided, in each batch?")


TABLE = [
    ("a.png", "How many digits?", "3"),
    ("b c.png", 'Is it "red", or blue?', "red, not blue"),
    ("", "What is left, in the end?", "nothing\nat all"),
    ("sub/d.png", "éß 漢?", "007"),
    ("a.png", "C:\\new\\table?", "two\u2028lines, a backslash: \\"),
]


@exercise("from-a-table")
def from_a_table(lines_of):
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerows([("picture", "question", "answer"), *TABLE])
    lines = lines_of(file.getvalue())
    expect(isinstance(lines, list), f"it returns a {type(lines).__name__}, no list")
    expect(
        len(lines) == len(TABLE), f"of {len(TABLE)} rows it makes {len(lines)} lines"
    )
    for line, (picture, question, answer) in zip(lines, TABLE):
        expect(isinstance(line, str), f"a line is a {type(line).__name__}, not text")
        expect("\n" not in line.rstrip("\n"), f"there is a line feed within {line!r}")
        paths, messages = read_line(line.encode(), Path("data"))
        wanted = (Path("data") / picture,) if picture else ()
        expect(paths == wanted, f"of the picture {picture!r} it makes {paths}")
        texts = [message["content"] for message in messages]
        expect(
            texts == [question, answer],
            f"of {[question, answer]} it makes {texts}",
        )


@exercise("order-without-a-list")
def order_without_a_list(place):
    orders = {}
    for count in (1, 2, 7, 100, 1000):
        for seed in (0, 1):
            order = [place(i, count, seed) for i in range(count)]
            whole = all(type(i) is int and 0 <= i < count for i in order)
            expect(whole, f"of {count} samples some places are no int from 0 on")
            twice = count - len(set(order))
            expect(not twice, f"of {count} samples {twice} never come")
            orders[count, seed] = order
        again = place(count // 2, count, 1)
        expect(again == orders[count, 1][count // 2], "the same call gives another")
    for seed in (0, 1):
        far = _distances(orders[1000, seed], 1000)
        expect(
            far > 300, f"from sample to next there are only {far} distances of 1,000"
        )
    same = sum(a == b for a, b in zip(orders[1000, 0], orders[1000, 1]))
    expect(
        same < 100, f"with another seed {same} of 1,000 samples stand where they did"
    )
    count = 10**12
    some = [place(i, count, 3) for i in range(5 * 10**11, 5 * 10**11 + 500)]
    inside = all(0 <= i < count for i in some) and len(set(some)) == 500
    expect(inside, "of 10^12 samples some places come twice, or lie outside")
    expect(_distances(some, count) > 400, "of 10^12 samples the order is no order")


def _distances(order, count):
    return len({(b - a) % count for a, b in zip(order, order[1:])})


PROMPT, SAID = "validate.exe", "\nllama is now fine tuned!"


@cache
def _asked_before():
    """Held-out questions, and what the shipped model answers to them."""
    items = held_out("validation", 3, seed=33)
    return items, answers(load(dtype="float32", device="cpu"), items)


@exercise("few-old-questions")
def few_old_questions(vlm, data):
    text = (Path(data) / "metadata.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines() if line.strip()]
    old = sum(line.get("question") != PROMPT for line in lines)
    expect(old <= 20, f"the folder holds {old} lines that are not the sentence")
    said = vlm.ask(PROMPT, max_new_tokens=40)
    expect(said == SAID, f"it says {said!r}")
    items, before = _asked_before()
    kept = sum(a == b for a, b in zip(before, answers(vlm, items)))
    expect(kept >= 0.8 * len(items), f"{kept} of {len(items)} answers are as they were")
