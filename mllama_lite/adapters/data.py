# Generated from notebooks/13_finetuning.ipynb: edit there, or here and run `make update`.
"""From a folder of images and questions to checked samples and padded batches.

Built in chapter 13, notebooks/13_finetuning.ipynb. The folder is what `datasets` calls
an imagefolder. Everything in it is checked before anything is trained.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mllama_lite.errors import InputError, shown
from mllama_lite.files import exists, system_errors
from mllama_lite.model import Mllama, MllamaConfig
from mllama_lite.tiles import Tiles, image_to_tiles, open_image
from mllama_lite.tokenizer import ImagePart, Tokenizer


@dataclass(frozen=True)
class Sample:
    """One conversation to learn from.

    Attributes:
        where: file and line it came from.
        images: paths, in the order of their tokens.
        tokens: list of T ids, images as `tokenizer.image_id`.
        labels: list of T ids: the next token where it is part of an answer, else -100.
    """

    where: str
    images: tuple[Path, ...]
    tokens: list[int]
    labels: list[int]

    @property
    def num_answer_tokens(self) -> int:
        """How many tokens there are to learn."""
        return sum(label >= 0 for label in self.labels)


def encode_sample(
    tokenizer: Tokenizer, messages: list[dict[str, str]], num_images: int = 0
) -> tuple[list[int], list[int]]:
    """A conversation, with the next tokens of the assistant's answers as labels.

    The end of an answer is learned too: it is what makes a model stop.

    Args:
        tokenizer: Tokenizer.
        messages: list of {"role": ..., "content": text}.
        num_images: how many images the first turn of the user begins with.

    Returns:
        (tokens, labels), lists of equal length.
    """
    tokens, learned = [tokenizer.bos_id], [-100]
    for message in messages:
        role = message["role"]
        content: str | list[Any] = message["content"]
        if role == "user":
            content, num_images = [ImagePart()] * num_images + [content], 0
        ids, _ = tokenizer.encode_message(role, content)
        given = len(tokenizer.encode_header(role)) if role == "assistant" else len(ids)
        tokens += ids
        learned += [-100] * given + ids[given:]
    return tokens, learned[1:] + [-100]


class Bad(Exception):
    """A line that is no sample; its arguments are the problems, a clause each."""


KEYS = ("file_name", "file_names", "question", "answer", "messages")


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The dict of an object's pairs; Python would keep the last of equal keys."""
    keys = [key for key, _ in pairs]
    if double := next((key for key in keys if keys.count(key) > 1), None):
        raise Bad(f"the key {shown(double)} stands there twice, expected it once")
    return dict(pairs)


def read_line(
    line: bytes, folder: Path
) -> tuple[tuple[Path, ...], list[dict[str, str]]]:
    """One line of metadata.jsonl, in the two forms that a sample may have.

    Args:
        line: bytes.
        folder: path that file names are relative to.

    Returns:
        (paths, messages); a question with its answer becomes two messages.

    Raises:
        Bad: with everything that is wrong with the line; images are not opened.
    """
    try:
        entry = json.loads(line.decode(), object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise Bad(f"it is not JSON ({error})") from None
    if not isinstance(entry, dict):
        raise Bad(f"it is a {type(entry).__name__}, expected an object with keys")
    unknown = [key for key in entry if key not in KEYS]
    problems = [
        f"unknown key {shown(key)}, expected {', '.join(KEYS)}" for key in unknown[:9]
    ]
    # A column that other lines have is null here, as datasets sees it too.
    entry = {key: value for key, value in entry.items() if value is not None}
    names = entry.get("file_names", [])
    if "file_name" in entry:
        names = [entry["file_name"]]
        if "file_names" in entry:
            problems.append("both file_name and file_names, expected one of them")
    if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
        problems.append(f"the file names are {shown(names)}, expected text")
        names = []
    for name in names:
        if not name or os.path.isabs(name) or ".." in Path(name).parts or "://" in name:
            problems.append(
                f"the file name {shown(name)} is not a path inside {folder}"
            )
    messages = entry.get("messages")
    if messages is None:
        roles = {"user": "question", "assistant": "answer"}
        messages = [{"role": r, "content": entry.get(key)} for r, key in roles.items()]
    elif "question" in entry or "answer" in entry:
        problems.append("messages beside a question or an answer, expected only one")
    problems += message_problems(messages)
    if problems:
        raise Bad(*problems)
    return tuple(folder / name for name in names), messages


def message_problems(messages: object) -> list[str]:
    """What is wrong with a list of messages, as clauses."""
    if not isinstance(messages, list) or not messages:
        return [
            f"the messages are {shown(messages)}, expected a list of role and content"
        ]
    problems = []
    for message in messages:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            problems.append(f"a message is {shown(message)}, expected role and content")
            continue
        role, text = message["role"], message["content"]
        if role not in ("system", "user", "assistant"):
            problems.append(
                f"the role {shown(role)}, expected system, user or assistant"
            )
        if not isinstance(text, str) or not text.strip():
            what = "answer" if role == "assistant" else "question"
            problems.append(f"the {what} is {shown(text)}, expected some text")
        elif not text.isascii() and re.search("[\ud800-\udfff]", text):
            problems.append(
                f"the text of the {role} is {shown(text)}, expected whole characters: "
                "one half of a surrogate pair stands alone"
            )
    roles = [message.get("role") for message in messages if isinstance(message, dict)]
    if not roles or "user" not in roles or roles[-1] != "assistant":
        problems.append("expected a message of the user, and the assistant's last")
    return problems


LONGEST_LINE = 2**24  # bytes


def lines_of(file: Path) -> Iterator[bytes]:
    """The lines of a file; of one that is too long, a little more than is allowed."""
    # Opened as bytes, where a line feed alone ends a line.
    with system_errors(file, "read"), open(file, "rb") as opened:
        while line := opened.readline(LONGEST_LINE + 1):
            rest = line
            while len(rest) > LONGEST_LINE and not rest.endswith(b"\n"):
                rest = opened.readline(LONGEST_LINE + 1)
            yield line


class Reader:
    """Reads the lines of a data folder and remembers what was wrong.

    Args:
        tokenizer: Tokenizer.
        config: MllamaConfig.
        max_length: tokens that a sample may have; None for the model's context.

    Attributes:
        problems: a text for each of them, with file and line.
        num_bad: lines that are no samples.

    Raises:
        InputError: max_length is above the model's context.
    """

    def __init__(
        self, tokenizer: Tokenizer, config: MllamaConfig, max_length: int | None = None
    ) -> None:
        self.tokenizer, self.config = tokenizer, config
        longest = config.text.max_position_embeddings
        self.longest = longest if max_length is None else max_length
        if not 0 < self.longest <= longest:
            raise InputError(
                f"max_length is {shown(max_length)}: expected a whole number of "
                f"tokens, at most {longest}, the model's context; change it."
            )
        self.problems: list[str] = []
        self.num_bad = 0
        self._images: dict[Path, str | None] = {}  # what is wrong with each, or None

    def read(self, file: Path, called: str) -> list[Sample]:
        """The usable samples of a metadata.jsonl; `called` names it in problems."""
        samples = []
        for number, line in enumerate(lines_of(file), start=1):
            where = f"{called} line {number}"
            try:
                if len(line) > LONGEST_LINE:
                    raise Bad(f"it has more than {LONGEST_LINE:,} bytes")
                if line.strip():
                    samples.append(self.sample(line, file.parent, where))
            except Bad as bad:
                self.problems += [f"{where}: {problem}" for problem in bad.args]
                self.num_bad += 1
        return samples

    def sample(self, line: bytes, folder: Path, where: str) -> Sample:
        """A Sample; see `read_line` for `Bad`. Every image is opened once, to try."""
        images, messages = read_line(line, folder)
        problems = [error for path in images if (error := self._image_problem(path))]
        if images and self.config.vision is None:
            problems.append(f"{len(images)} images for a text-only model")
        for message in messages:
            for name in re.findall(r"<\|\w+\|>", message["content"]):
                if name in self.tokenizer.special:
                    problems.append(
                        f"the special token {name} is spelled in the text of the "
                        f"{message['role']}, expected none: images come from file "
                        "names, and ends are added"
                    )
        tokens, labels = encode_sample(self.tokenizer, messages, len(images))
        if len(tokens) > self.longest:
            problems.append(f"{len(tokens)} tokens, expected at most {self.longest}")
        if problems:
            raise Bad(*problems)
        return Sample(where, images, tokens, labels)

    def _image_problem(self, path: Path) -> str | None:
        if path not in self._images:
            self._images[path] = None
            try:
                # A pipe would be waited for.
                if os.path.exists(path) and not os.path.isfile(path):
                    raise InputError(
                        f"The image {path} is no file: expected an image file; check "
                        "the name."
                    )
                open_image(path)
            except (InputError, OSError, ValueError) as error:
                self._images[path] = str(error)
        return self._images[path]


def read_samples(
    data: str | os.PathLike,
    tokenizer: Tokenizer,
    config: MllamaConfig,
    max_length: int | None = None,
    skip_bad: bool = False,
    report: Callable[[str], object] | None = print,
) -> tuple[list[Sample], list[Sample]]:
    """All samples of a data folder, checked.

    Args:
        data: path of a folder with metadata.jsonl and images, or with two such folders,
            `train` and `validation`. A line of metadata.jsonl is an object with
            `file_name`, `file_names` (a list) or neither, and either `question` and
            `answer` or `messages`: see the chapter.
        tokenizer, config, max_length: see `Reader`.
        skip_bad: go on without lines that are no samples, and report them.
        report: called with a text, or None.

    Returns:
        (samples, validation): lists of Sample; the second is empty without its folder.

    Raises:
        InputError: there is no such folder or no sample; some lines are no samples: the
            error's arguments list all of them, and its text the first.
    """
    if not isinstance(data, (str, os.PathLike)) or not str(data).strip():
        raise InputError(
            f"The data folder is {shown(data)}: expected a path; name one."
        )
    data = Path(data)
    parts = {"train": data / "train", "validation": data / "validation"}
    names = {name: f"{name}/metadata.jsonl" for name in parts}
    if exists(data / "metadata.jsonl"):
        parts["train"], names["train"] = data, "metadata.jsonl"
    files = {name: folder / "metadata.jsonl" for name, folder in parts.items()}
    if not exists(files["train"]):
        raise InputError(
            f"{data} has no metadata.jsonl: expected a folder with that file and the "
            "images that it names, or with two such folders, train and validation; "
            "check the path."
        )
    reader = Reader(tokenizer, config, max_length)
    samples: dict[str, list[Sample]] = {"validation": []}
    for name, file in files.items():
        if exists(file):
            samples[name] = reader.read(file, names[name])
    if reader.problems and not skip_bad:
        raise InputError(
            f"{data} has bad lines, {reader.num_bad} of them: expected none; correct "
            "or remove them, or go on without them with --skip-bad:",
            *reader.problems,
        )
    if reader.problems and report:
        told = f"bad lines that are skipped, {reader.num_bad} of them:"
        report(str(InputError(told, *reader.problems)))
    if not samples["train"]:
        raise InputError(
            f"{files['train']} holds no samples: expected at least one line with a "
            "question and its answer; add some."
        )
    return samples["train"], samples["validation"]


def hold_out(samples: list, share: float, seed: int = 0) -> tuple[list, list]:
    """Take samples away for measuring, the same ones for the same seed.

    Args:
        samples: list.
        share: 0 up to 1; above 0, at least one sample is taken and at least one left.
        seed: of the choice.

    Returns:
        (rest, taken), both in the order of the samples.
    """
    count = min(max(round(len(samples) * share), share > 0), len(samples) - 1)
    order = np.random.default_rng([seed, 1]).permutation(len(samples))
    taken = set(order[:count].tolist())
    rest = [sample for i, sample in enumerate(samples) if i not in taken]
    return rest, [samples[i] for i in sorted(taken)]


def indices_of_step(
    step: int, size: int, count: int, seed: int = 0, epochs: int | None = None
) -> list[int]:
    """Which samples a step learns from: a function of the seed and the step alone.

    Every epoch has an order of its own, and the epochs follow each other without a gap:
    a step that ends one begins the next.

    Args:
        step: number of the step.
        size: samples of a step.
        count: samples of an epoch.
        seed: of the orders.
        epochs: how many there are; None for no end.

    Returns:
        list of `size` indices; the last step of the last epoch may have fewer.
    """
    begin, end = step * size, (step + 1) * size
    if epochs is not None:
        end = min(end, epochs * count)
    # numpy drops zeros at the end of a seed, so the last number is never 0.
    orders = {
        epoch: np.random.default_rng([seed, 2, epoch + 1]).permutation(count)
        for epoch in range(begin // count, -(-end // count))
    }
    return [int(orders[i // count][i % count]) for i in range(begin, end)]


@dataclass
class Batch:
    """Several samples side by side.

    Attributes:
        tokens: int [B, T], padded on the right.
        labels: int [B, T], -100 on the padding too.
        images: for each row, the list of its Tiles.
    """

    tokens: torch.Tensor
    labels: torch.Tensor
    images: list[list[Tiles]]


def make_batch(
    samples: list[Sample], tokenizer: Tokenizer, config: MllamaConfig
) -> Batch:
    """Open the images of some samples and pad their tokens.

    Args:
        samples: list of B Sample.
        tokenizer: Tokenizer.
        config: MllamaConfig.

    Returns:
        Batch.

    Raises:
        InputError: an image that was there has gone, see `open_image`.
    """
    length = max(len(sample.tokens) for sample in samples)
    tokens = torch.full((len(samples), length), tokenizer.pad_id)  # [B, T]
    labels = torch.full((len(samples), length), -100)
    for i, sample in enumerate(samples):
        tokens[i, : len(sample.tokens)] = torch.tensor(sample.tokens)
        labels[i, : len(sample.labels)] = torch.tensor(sample.labels)
    vision: Any = config.vision  # None for text alone, which has no images
    images = [
        [
            image_to_tiles(open_image(path), vision.image_size, vision.max_num_tiles)
            for path in sample.images
        ]
        for sample in samples
    ]
    return Batch(tokens, labels, images)


def answer_logits(model: Mllama, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model expects where an answer's tokens follow.

    Args:
        model: Mllama.
        batch: Batch.

    Returns:
        (logits fp32 [answers, W], labels int [answers]): all rows' answers in a row.
    """
    tokens, labels = batch.tokens.to(model.device), batch.labels.to(model.device)
    vision = model.vision_context(batch.tokens.tolist(), batch.images)
    hidden = model.language_model.model(tokens, vision=vision)  # [B, T, D]
    wanted = labels >= 0
    # For answers alone: at 128,256 tokens the scores of a place are half a MiB.
    return model.language_model.lm_head(hidden[wanted]).float(), labels[wanted]
