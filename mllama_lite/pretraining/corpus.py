# Generated from notebooks/16_text.ipynb: edit there, or here and run `make update`.
"""Text to train on: documents streamed in, tokens packed into one file of numbers.

Built in chapter 16, notebooks/16_text.ipynb. Texts may be larger than memory: documents
pass by one at a time, and what stays are their places and two files of token ids that are
mapped, not read.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mllama_lite.errors import InputError, shown
from mllama_lite.files import system_errors, written_aside
from mllama_lite.pretraining.vocabulary import count_words, learn_merges
from mllama_lite.tokenizer import (
    Tokenizer,
    read_tokenizer_model,
    write_tokenizer_model,
)


HELD_OUT = 1 / 32  # of the documents
INDEX = "corpus.json"


@dataclass(frozen=True)
class Document:
    """A text, where it is from, and its name there."""

    source: str
    name: str
    text: str


def read_documents(path: str | PathLike) -> Iterator[Document]:
    """Documents of a .jsonl file, or of all in a folder, a line at a time.

    A line is a JSON object with `text`; `source` and `name` are the file's name and the
    line's number where they are missing.

    Raises:
        InputError: nothing is there; a line that is no such object.
    """
    with system_errors(path, "read"):
        path = Path(path)
        files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not files:
            raise InputError(
                f"{path} has no .jsonl file: expected documents, one a line, each an "
                "object with text; make corpus fetches some."
            )
        for file in files:
            # What is no UTF-8 becomes half a character, which no document may have.
            with open(file, encoding="utf-8", errors="surrogateescape") as lines:
                for number, line in enumerate(lines, 1):
                    yield _document(line, file, number)


def _document(line: str, file: Path, number: int) -> Document:
    try:
        found = json.loads(line)
        text = found["text"]
        if not isinstance(text, str):
            raise TypeError
        text.encode()  # not with half a character, as "\\ud800" is
    except (ValueError, TypeError, KeyError, RecursionError):
        raise InputError(
            f"{file}, line {number}, is {shown(line)}: expected a JSON object with "
            "text; correct or remove it."
        ) from None
    return Document(
        str(found.get("source", file.stem)), str(found.get("name", number)), text
    )


def stream_documents(
    name: str, subset: str | None = None, column: str = "text", **options: Any
) -> Iterator[Document]:
    """Documents of a set on the hub, streamed: nothing is kept but what passes by.

    Args:
        name: as `datasets.load_dataset` takes it, HuggingFaceTB/smollm-corpus say, or
            json or parquet with `data_files`.
        subset: of the set, cosmopedia-v2 say; None if it has but one.
        column: that holds the text.
        options: further ones of `load_dataset`.

    Raises:
        InputError: there is no such column; `datasets` is not installed.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise InputError(
            "Streaming needs the package datasets: expected it to be installed; "
            "pip install datasets."
        ) from None
    rows = load_dataset(name, subset, streaming=True, split="train", **options)
    for number, row in enumerate(rows):
        if not isinstance(row.get(column), str):
            raise InputError(
                f"Row {number} of {name} has no text in {shown(column)}: expected one "
                f"of its columns ({', '.join(row)}); name it."
            )
        yield Document(str(row.get("source", name)), str(number), row[column])


def is_held_out(document: Document) -> bool:
    """Whether a document is measured on and never learned: by its source and name."""
    digest = hashlib.sha256(f"{document.source}/{document.name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT * 2**32


class Corpus:
    """Tokens of a corpus, packed: the documents one after another, an end after each.

    Args:
        folder: that `pack` wrote.

    Attributes:
        tokens: dict from "train" and "held_out" to uint16 or uint32 [n], mapped.
        documents: dict from the same to a list of dicts: `source`, `name`, `start` and
            `length` in tokens, `bytes` of the text in UTF-8.
        checksum: of everything that was packed.

    Raises:
        InputError: the folder holds no corpus, or a damaged one.
    """

    def __init__(self, folder: str | PathLike) -> None:
        self.folder = folder = Path(folder)
        with system_errors(folder / INDEX, "read"):
            text = (folder / INDEX).read_text(encoding="utf-8")
        try:
            index = json.loads(text)
            self.documents, dtype = index["documents"], np.dtype(index["dtype"])
            self.checksum = index["checksum"]
        except (ValueError, KeyError, TypeError):
            raise InputError(
                f"{folder / INDEX} is no index of a corpus: expected what pack wrote; "
                "pack it again."
            ) from None
        self.tokens: dict[str, np.ndarray] = {}
        for part, documents in self.documents.items():
            path, size = folder / f"{part}.bin", sum(d["length"] for d in documents)
            with system_errors(path, "read"):
                there = path.stat().st_size
            if there != size * dtype.itemsize:
                raise InputError(
                    f"{path} has {there} bytes: expected {size * dtype.itemsize}, as "
                    "the index says; pack the corpus again."
                )
            # An empty file cannot be mapped.
            mapped = np.memmap(path, dtype, "r") if size else np.zeros(0, dtype)
            self.tokens[part] = mapped

    def num_windows(self, length: int) -> int:
        """How many pieces of so many tokens there are to learn from."""
        return (len(self.tokens["train"]) - 1) // length

    def windows(self, numbers: Iterable[int], length: int) -> torch.Tensor:
        """Pieces of the training tokens, each with the one token that follows.

        Args:
            numbers: of the pieces, from 0 to `num_windows`.
            length: T.

        Returns:
            int [B, T + 1].
        """
        tokens = self.tokens["train"]
        rows = [tokens[n * length : (n + 1) * length + 1] for n in numbers]
        return torch.from_numpy(np.stack(rows).astype(np.int64))


def pack(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    folder: str | PathLike,
    most: int | None = None,
) -> Corpus:
    """Write documents as tokens, those to learn from and those held out.

    Args:
        documents: iterable of Document, gone through once.
        tokenizer: Tokenizer.
        folder: where to write; made if it is not there.
        most: stop after so many tokens to learn from; None for all.

    Returns:
        Corpus.

    Raises:
        InputError: no document to learn from, or none to hold out; the folder cannot be
            written.
    """
    folder, end = Path(folder), tokenizer.special["<|end_of_text|>"]
    dtype = np.uint16 if max(tokenizer.special.values()) < 2**16 else np.uint32
    index: dict[str, list[dict]] = {"train": [], "held_out": []}
    sizes, digest = {"train": 0, "held_out": 0}, hashlib.sha256()
    with system_errors(folder, "written"):
        folder.mkdir(parents=True, exist_ok=True)
    with (
        written_aside(folder / "train.bin") as train,
        written_aside(folder / "held_out.bin") as held_out,
        open(train, "wb") as train_file,
        open(held_out, "wb") as held_out_file,
    ):
        files = {"train": train_file, "held_out": held_out_file}
        for document in documents:
            part = "held_out" if is_held_out(document) else "train"
            ids = np.array([*tokenizer.encode(document.text), end], dtype)
            digest.update(ids.tobytes())
            files[part].write(ids.tobytes())
            index[part].append(
                {
                    "source": document.source,
                    "name": document.name,
                    "start": sizes[part],
                    "length": len(ids),
                    "bytes": len(document.text.encode()),
                }
            )
            sizes[part] += len(ids)
            if most is not None and sizes["train"] >= most:
                break
        for part, what in (("train", "learn from"), ("held_out", "hold out")):
            if not index[part]:
                raise InputError(
                    f"There is no document to {what}: expected a few dozen at least, of "
                    "which one in 32 is held out; cut long ones, or give more."
                )
    with written_aside(folder / INDEX) as path:
        whole = {
            "dtype": np.dtype(dtype).name,
            "checksum": digest.hexdigest()[:16],
            "documents": index,
        }
        path.write_text(json.dumps(whole) + "\n", encoding="utf-8")
    return Corpus(folder)


def prepare(
    documents: Callable[[], Iterable[Document]],
    folder: str | PathLike,
    num_merges: int = 4096,
    most: int | None = None,
    characters: int = 100_000_000,
    report: Callable[[str], object] | None = None,
) -> tuple[Tokenizer, Corpus]:
    """A folder's vocabulary and packed corpus; what is not there yet is made.

    Args:
        documents: called for an iterable of Document, once for the vocabulary and once
            for the tokens.
        folder: with `tokenizer.model` and `corpus/`, or where they go.
        num_merges: of the vocabulary.
        most: stop after so many tokens to learn from; None for all.
        characters: how much text the merges are learned from, at most; none of it is
            held out.
        report: called with a line before each of the two, which take minutes for
            hundreds of megabytes; None for silence.

    Returns:
        (Tokenizer, Corpus).

    Raises:
        InputError: see `pack`; what is there cannot be read.
    """
    folder = Path(folder)
    path = folder / "tokenizer.model"
    report = report or (lambda _: None)
    if not path.is_file():
        report(f"learning a vocabulary of {num_merges:,} merges")
        words = count_words(_beginning(documents(), characters))
        with system_errors(folder, "written"):
            folder.mkdir(parents=True, exist_ok=True)
        write_tokenizer_model(learn_merges(words, num_merges), path)
    tokenizer = Tokenizer(read_tokenizer_model(path))
    if (folder / "corpus" / INDEX).is_file():
        return tokenizer, Corpus(folder / "corpus")
    report("packing the documents")
    return tokenizer, pack(documents(), tokenizer, folder / "corpus", most)


def _beginning(documents: Iterable[Document], characters: int) -> Iterator[str]:
    """Texts to learn from, until there are so many characters."""
    for document in documents:
        if not is_held_out(document):
            yield document.text
            characters -= len(document.text)
            if characters <= 0:
                return
