"""Text to train on: the vocabulary, documents that are read and streamed, packed tokens."""

import hashlib
import json
import random
import struct
import zlib
from collections import Counter

import numpy as np
import pytest
import torch

import corpus as fetching  # tools/corpus.py
from mllama_lite.errors import InputError
from mllama_lite.pretraining.corpus import (
    Corpus,
    Document,
    is_held_out,
    pack,
    read_documents,
    stream_documents,
)
from mllama_lite.pretraining.vocabulary import count_words, learn_merges
from mllama_lite.tokenizer import Tokenizer, train_bpe


def texts(count, seed=0):
    rng = random.Random(seed)
    words = ["the", "whale", "sees", "an", "ocean", "naïve", "42", "\n\n", "don't"]
    return [
        Document("made", str(i), " ".join(rng.choices(words, k=rng.randint(1, 80))))
        for i in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(learn_merges(count_words(d.text for d in texts(200)), 100))


@pytest.fixture
def corpus(tokenizer, tmp_path):
    return pack(texts(200), tokenizer, tmp_path / "corpus")


def test_merges_are_those_of_chapter_1():
    rng = random.Random(1)
    for trial in range(150):
        letters = b"abcd"[: rng.randint(1, 4)]
        words = [
            bytes(rng.choices(letters, k=rng.randint(1, 9)))
            for _ in range(rng.randint(0, 50))
        ]
        slow, quick = train_bpe(words, 40), learn_merges(Counter(words), 40)
        assert list(slow.items()) == list(quick.items()), trial


def test_words_are_cut_as_the_tokenizer_cuts():
    counts = count_words(["It's 12345 naïve", "It's"])
    assert counts[b"It"] == 2 and counts["\u0020na\u00efve".encode()] == 1
    assert counts[b"123"] == counts[b"45"] == 1


def test_documents_of_a_folder(tmp_path):
    for name in ("b", "a"):
        lines = [json.dumps({"text": f"{name} {i}"}) for i in range(2)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "other.txt").write_text("no document")
    read = list(read_documents(tmp_path))
    assert read == [
        Document(name, str(i + 1), f"{name} {i}") for name in "ab" for i in range(2)
    ]


@pytest.mark.parametrize(
    "line",
    ["no JSON", "[1]", '"text"', '{"texts": "a"}', '{"text": 1}', "", "[" * 9999],
)
def test_a_bad_line_is_named(line, tmp_path):
    path = tmp_path / "some.jsonl"
    text = f'{{"text": "good"}}\n{line}\n{{"text": "good"}}\n'
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(
        InputError, match=r"some\.jsonl, line 2, is .*: expected a JSON"
    ):
        list(read_documents(path))


def test_nothing_to_read(tmp_path):
    with pytest.raises(InputError, match=r"has no \.jsonl file"):
        list(read_documents(tmp_path))
    with pytest.raises(InputError, match="nowhere.jsonl cannot be read"):
        list(read_documents(tmp_path / "nowhere.jsonl"))


@pytest.mark.witness
@pytest.mark.parametrize("form", ["json", "parquet"])
def test_a_stream_of_the_hubs_form(form, tmp_path):
    datasets = pytest.importorskip("datasets")
    path = tmp_path / f"rows.{form}"
    rows = [{"story": document.text, "prompt": "p"} for document in texts(30)]
    made = datasets.Dataset.from_list(rows)
    made.to_json(path) if form == "json" else made.to_parquet(path)
    read = list(stream_documents(form, column="story", data_files=str(path)))
    assert [d.text for d in read] == [d.text for d in texts(30)]
    assert [d.name for d in read] == [str(i) for i in range(30)]
    with pytest.raises(InputError, match="has no text in 'text'.*story, prompt"):
        next(stream_documents(form, data_files=str(path)))


def test_every_token_is_kept_and_every_document_has_its_place(corpus, tokenizer):
    end = tokenizer.special["<|end_of_text|>"]
    found = {"train": {}, "held_out": {}}
    for part, documents in corpus.documents.items():
        for entry in documents:
            first = entry["start"]
            ids = corpus.tokens[part][first : first + entry["length"]].tolist()
            assert ids[-1] == end
            found[part][entry["name"]] = tokenizer.decode(ids[:-1])
    for document in texts(200):
        part = "held_out" if is_held_out(document) else "train"
        assert found[part].pop(document.name) == document.text
    assert not found["train"] and not found["held_out"]


def test_what_is_held_out_hangs_on_the_name_alone(tokenizer, corpus, tmp_path):
    names = [entry["name"] for entry in corpus.documents["held_out"]]
    assert 1 <= len(names) <= 20  # of 200, a 32nd expected
    turned = pack(reversed(texts(200)), tokenizer, tmp_path / "turned")
    again = [entry["name"] for entry in turned.documents["held_out"]]
    assert sorted(again) == sorted(names) and turned.checksum != corpus.checksum


def test_pieces_follow_each_other(corpus):
    length = 16
    pieces = corpus.windows(range(corpus.num_windows(length)), length)
    tokens = torch.from_numpy(corpus.tokens["train"].astype(np.int64))
    assert torch.equal(pieces[:, :-1].flatten(), tokens[: len(pieces) * length])
    assert torch.equal(pieces[:, 1:].flatten(), tokens[1 : len(pieces) * length + 1])
    assert len(tokens) - len(pieces) * length <= length


def test_enough_is_enough(tokenizer, tmp_path):
    passed = iter(texts(200))
    corpus = pack(passed, tokenizer, tmp_path, most=9000)
    last = corpus.documents["train"][-1]["length"]
    assert 9000 <= len(corpus.tokens["train"]) < 9000 + last
    assert next(passed, None) is not None  # the rest was not asked for


def test_many_tokens_take_four_bytes(tmp_path):
    class Wide(Tokenizer):
        def __init__(self):
            self.special = {"<|end_of_text|>": 2**16}

        def encode(self, text):
            return [70_000] * len(text)

    corpus = pack(texts(200), Wide(), tmp_path)
    first = corpus.documents["train"][0]["length"]
    assert corpus.tokens["train"][:first].tolist() == [70_000] * (first - 1) + [2**16]


@pytest.mark.parametrize(
    ("documents", "what"), [([], "learn from"), (texts(1), "hold out")]
)
def test_too_few_documents(documents, what, tokenizer, tmp_path):
    with pytest.raises(InputError, match=f"no document to {what}"):
        pack(documents, tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_corpus_that_does_not_fit_its_index(corpus):
    path = corpus.folder / "train.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(InputError, match="as the index says"):
        Corpus(corpus.folder)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"documents": 3}'])
def test_an_index_that_is_none(corpus, text):
    (corpus.folder / "corpus.json").write_text(text)
    with pytest.raises(InputError, match="is no index of a corpus"):
        Corpus(corpus.folder)


# ---------------------------------------------------------------- tools/corpus.py


def write_under(root, name, data):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def test_texts_with_titles(tmp_path):
    name = "package/data/1790_george_washington_d.txt"
    write_under(tmp_path, name, "One line\r\nand on.\n \n\nA second  part.\n")
    (found,) = fetching.speeches(tmp_path)
    title = "George Washington, 1790"
    assert found == (title, f"{title}\n\nOne line and on.\n\nA second part.")
    for name in ("data", "chapter_10", "chapter_9"):
        write_under(tmp_path / "moby", f"package/data/{name}.txt", name)
    found = dict(fetching.moby(tmp_path / "moby"))
    assert list(found) == ["chapter_9", "chapter_10"]  # data is the whole book again


def test_glosses_of_wordnet(tmp_path):
    line = "00001740 03 n 02 state_of_mind 0 mood 1 001 @ 01 n 0000 | how one {i} is  "
    for part in ("noun", "verb", "adj", "adv"):
        lines = ["  1 a licence | with a bar", *(line.format(i=i) for i in range(20))]
        write_under(tmp_path, f"usr/share/wordnet/data.{part}", "\n".join(lines))
    found = list(fetching.glosses(tmp_path))
    assert [name for name, _ in found] == ["glosses from 0", "glosses from 64"]
    lines = "\n".join(text for _, text in found).split("\n")
    want = [f"state of mind, mood: how one {i} is" for i in range(20)]
    assert lines == 4 * want


def test_books_of_the_bible(tmp_path):
    for part in ("ot", "nt"):
        books = [f"<title>{part}</title>In the&amp; beginning", "", "Second"]
        packed, index = b"", b""
        for book in books:
            data = zlib.compress(book.encode()) if book else b""
            index += struct.pack("<III", len(packed), len(data), len(book))
            packed += data
        for end, data in (("bzz", packed), ("bzs", index)):
            name = f"usr/share/sword/modules/texts/ztext/web/{part}.{end}"
            write_under(tmp_path, name, data)
    assert list(fetching.bible(tmp_path)) == [
        (f"{part} {n}", text)
        for part in ("ot", "nt")
        for n, text in ((0, f"{part} In the& beginning"), (2, "Second"))
    ]


def test_novels_of_a_database_of_r(tmp_path):
    lines = ["EMMA", "", "By somebody", "CHAPTER I", "", "It", "began."]
    lines += ["more"] * 1000 + ["CHAPTER II", "", "The end."]
    vector = b"".join(
        b"\x00\x04\x00\x09" + struct.pack(">i", len(line)) + line.encode()
        for line in lines
    )
    short = zlib.compress(b"\x00\x04\x00\x09" + struct.pack(">i", 2) + b"no")
    data = b"\x78\x9cnothing" + short + b"\0\0" + zlib.compress(vector)
    name = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    write_under(tmp_path, name, data)
    found = dict(fetching.austen(tmp_path))
    assert list(found) == ["Emma 0", "Emma 1", "Emma 2"]
    assert found["Emma 1"].startswith("CHAPTER I\n\nIt began. more more")
    assert found["Emma 2"] == "CHAPTER II\n\nThe end."


def test_documents_are_written_once_and_their_checksum_told(tmp_path, monkeypatch):
    long = "word " * 60
    monkeypatch.setattr(fetching, "FOLDER", tmp_path)
    given = [("a", long), ("b", "too short"), ("c", long), ("d", long + "na\u00efve")]
    monkeypatch.setitem(fetching.READERS, "moby", lambda root: given)
    checksum = fetching.write("moby", tmp_path)
    data = (tmp_path / "moby.jsonl").read_bytes()
    assert checksum == hashlib.sha256(data).hexdigest()
    read = list(read_documents(tmp_path))
    assert [(d.source, d.name) for d in read] == [("moby", "a"), ("moby", "d")]
    assert read[1].text.endswith("na\u00efve")
