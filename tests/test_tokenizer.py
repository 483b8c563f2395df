"""The tokenizer and the chat format against Meta's, on real, fuzzed and hostile text."""

import io
import random

import pytest
import tiktoken
from PIL import Image

import reference
from mllama_lite.errors import InputError
from mllama_lite.tokenizer import (
    SPLIT_PATTERN,
    ImagePart,
    Tokenizer,
    bpe_merge,
    read_tokenizer_model,
    split_long_text,
    train_bpe,
    write_tokenizer_model,
)


@pytest.fixture(scope="module")
def ours():
    return Tokenizer.from_file(reference.tokenizer_path())


@pytest.fixture(scope="module")
def meta():
    from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

    return MetaTokenizer(reference.tokenizer_path())


def real_strings():
    """Lines of the standard library and of what comes with Python: code, prose, names."""
    import pydoc_data.topics

    lines = [
        line
        for topic in pydoc_data.topics.topics.values()
        for line in topic.splitlines()
    ]
    lines += open(random.__file__, encoding="utf-8").read().splitlines()
    return [line for line in lines if line]


def fuzzed_strings(count, seed):
    """Random mixtures of scripts, digits, spaces, emoji, special tokens, odd characters."""
    rng = random.Random(seed)
    alphabets = [
        "abcdefghijklmnopqrstuvwxyz",
        "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
        "0123456789",
        "   \t\n\r\u00a0\u2003\u200b",
        "'s't're've'm'll'dſ",
        '.,;:!?()[]{}<>|/\\"`~@#$%^&*-_=+',
        "äöüßéèñçøåœæ",
        "абвгдежзийклмн",
        "日本語中文漢字かなカナ한국어",
        "العربيةעבריתहिन्दीไทย",
        "😀👩‍👩‍👧‍👦🇩🇪👍🏽❤️",
        "\x00\x07\x1b\ufeff\ufffd\U0010ffff",
    ]
    specials = ["<|eot_id|>", "<|begin_of_text|>", "<|image|>", "<|python_tag|>"]
    for _ in range(count):
        pieces = []
        for _ in range(rng.randrange(1, 12)):
            if rng.random() < 0.05:
                pieces.append(rng.choice(specials))
            alphabet = rng.choice(alphabets)
            pieces.append(
                "".join(rng.choice(alphabet) for _ in range(rng.randrange(1, 9)))
            )
        yield "".join(pieces)


def test_encode(ours, meta, proof):
    rng = random.Random(0)
    strings = rng.sample(real_strings(), 5000) + list(fuzzed_strings(5000, 1))
    wrong = sum(ours.encode(s) != meta.encode(s, bos=False, eos=False) for s in strings)
    proof("Tokenizer, encode", "Meta", "5,000 real and 5,000 fuzzed strings", wrong, 0)


def test_decode(ours, meta, proof):
    """Of encoded text, and of random ids, whose bytes are often no UTF-8."""
    rng = random.Random(2)
    rows = [meta.encode(s, bos=True, eos=True) for s in fuzzed_strings(1000, 3)]
    rows += [
        [rng.randrange(128256) for _ in range(rng.randrange(12))] for _ in range(1000)
    ]
    wrong = sum(ours.decode(row) != meta.decode(row) for row in rows)
    proof("Tokenizer, decode", "Meta", "2,000 rows of ids", wrong, 0)


def test_very_long_text(ours, meta, proof):
    rng = random.Random(4)
    texts = [
        "a" * 60_000,
        " " * 60_000,
        ("x" * 24_999 + " ") * 3,
        "z" * 25_000 + " " * 25_001 + "1" * 50_001,
        "".join(rng.choice("ab \n") for _ in range(410_000)),
    ]
    wrong = sum(ours.encode(t) != meta.encode(t, bos=False, eos=False) for t in texts)
    for text in texts:
        assert "".join(split_long_text(text)) == text
        assert split_long_text(text) == [
            piece
            for i in range(0, len(text), 400_000)
            for piece in meta._split_whitespaces_or_nonwhitespaces(
                text[i : i + 400_000], 25_000
            )
        ]
    proof("Tokenizer, texts of up to 410,000 characters", "Meta", "5 texts", wrong, 0)


def test_special_tokens(ours, meta):
    assert ours.special == meta.special_tokens
    assert ours.vocab_size == meta.n_words == 128256
    assert ours.special["<|image|>"] == 128011 and ours.image_id == 128256
    assert sorted(ours.stop_ids) == sorted(meta.stop_tokens) == [128001, 128008, 128009]
    assert (ours.bos_id, ours.pad_id) == (meta.bos_id, meta.pad_id) == (128000, 128004)


def test_text_never_becomes_a_special_token(ours):
    for name in [*ours.special, "a<|eot_id|>b", "<|image|>"]:
        ids = ours.encode(name)
        assert not any(ours.is_special(id) for id in ids)
        assert ours.decode(ids) == name


def dialogues(count, seed):
    """Random conversations with images; text may spell special tokens."""
    rng = random.Random(seed)
    texts = list(fuzzed_strings(200, seed)) + ["", "What is this?"]
    for _ in range(count):
        messages = []
        for _ in range(rng.randrange(1, 7)):
            role = rng.choice(["user", "assistant", "system", "tool"])
            content = [rng.choice(texts) for _ in range(rng.randrange(1, 4))]
            for _ in range(rng.choice([0, 0, 1, 2, 3])):
                content.insert(rng.randrange(len(content) + 1), ImagePart())
            messages.append(
                {"role": role, "content": content if rng.random() < 0.7 else "plain"}
            )
        yield messages


def test_dialogues(ours, meta, proof):
    from llama_models.datatypes import RawMediaItem, RawMessage, RawTextItem, StopReason
    from llama_models.llama3.chat_format import ChatFormat

    picture = io.BytesIO()
    Image.new("RGB", (2, 2)).save(picture, "PNG")

    def item(one):
        is_text = isinstance(one, str)
        return (
            RawTextItem(text=one) if is_text else RawMediaItem(data=picture.getvalue())
        )

    def message(one):
        content = one["content"]
        content = (
            content if isinstance(content, str) else [item(part) for part in content]
        )
        return RawMessage(
            role=one["role"], content=content, stop_reason=StopReason.end_of_turn
        )

    wrong, with_images = 0, 0
    for messages in dialogues(400, 5):
        theirs = ChatFormat(meta).encode_dialog_prompt(
            [message(one) for one in messages]
        )
        ids, images = ours.encode_chat(messages)
        with_images += bool(images)
        wrong += ids != theirs.tokens
        assert len(images) == (len(theirs.vision.images) if theirs.vision else 0)
    assert with_images > 200
    proof("Chat format with images", "Meta", "400 dialogues", wrong, 0)


def test_stream_never_shows_half_a_character(ours):
    rng = random.Random(6)
    for text in fuzzed_strings(300, 7):
        ids = ours.encode(text)
        pieces = list(ours.stream(iter(ids)))
        assert "".join(pieces) == text and all(pieces)
        assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text
    for _ in range(300):
        ids = [rng.randrange(128256) for _ in range(9)]
        assert "".join(ours.stream(ids)) == ours.decode(ids, skip_special=True)


def test_merging_by_hand_equals_tiktoken(ours):
    ranks = read_tokenizer_model(reference.tokenizer_path())
    words = {w for text in fuzzed_strings(500, 8) for w in text.split()}
    pieces = tiktoken.Encoding(
        "x", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    for word in words:
        word = word.encode()
        if len(pieces.encode_ordinary(word.decode())) and word not in ranks:
            want = pieces._encode_single_piece(word)
            assert bpe_merge(word, ranks) == want


def test_trained_vocabulary_round_trip(tmp_path):
    words = [w.encode() for w in "the cat sat on the mat the cat ate the rat".split()]
    ranks = train_bpe(words, 20)
    assert b"the" in ranks and sorted(ranks.values()) == list(range(len(ranks)))
    write_tokenizer_model(ranks, tmp_path / "tokenizer.model")
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.model")
    assert (
        tokenizer.decode(tokenizer.encode("the cat, naïve 🐈")) == "the cat, naïve 🐈"
    )
    assert tokenizer.vocab_size == len(ranks) + 256


def test_hub_tokenizer_file(tmp_path, ours, proof):
    """The hub's tokenizer.json of the same vocabulary, written by transformers' converter."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    names = list(ours.special)
    converter = TikTokenConverter(
        vocab_file=str(reference.tokenizer_path()),
        pattern=SPLIT_PATTERN,
        extra_special_tokens=names,
    )
    PreTrainedTokenizerFast(tokenizer_object=converter.converted()).save_pretrained(
        tmp_path
    )
    from_hub = Tokenizer.from_file(tmp_path / "tokenizer.json")
    strings = list(fuzzed_strings(2000, 9))
    wrong = sum(from_hub.encode(s) != ours.encode(s) for s in strings)
    proof(
        "Tokenizer from tokenizer.json",
        "from tokenizer.model",
        "2,000 fuzzed strings",
        wrong,
        0,
    )


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "No tokenizer file"),
        (b"", "no token for byte 0"),
        (b"AA== 0\nnot base64!! 1\n", "Line 2"),
        (b"AA== 0\nAQ== x\n", "Line 2"),
        (b"AA== 0\n", "no token for byte 1"),
    ],
)
def test_bad_tokenizer_files(tmp_path, content, says):
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        Tokenizer.from_file(path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"model": {"type": "WordPiece"}}']
)
def test_bad_hub_tokenizer_files(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match="tokenizer.json (has|is truncated)"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


def test_bad_calls(ours):
    with pytest.raises(InputError, match="bytes: expected a string"):
        ours.encode(b"hi")
    for id in (-1, 128257):
        with pytest.raises(InputError, match=f"Token id {id}"):
            ours.decode([id])
    assert ours.decode([128256]) == "<|image|>"
    with pytest.raises(InputError, match="role 'robot'"):
        ours.encode_chat([{"role": "robot", "content": "hi"}])
    with pytest.raises(InputError, match="keys 'role'"):
        ours.encode_chat([{"role": "user"}])
