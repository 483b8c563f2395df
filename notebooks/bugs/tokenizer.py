"""Chapter 1: bugs of a tokenizer, and what notices them."""

import random

import tiktoken

from bugs import a_bug, a_check, replaced
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.tiles import open_image
from mllama_lite.tokenizer import (
    SPLIT_PATTERN,
    ImagePart,
    Tokenizer,
    bpe_merge,
    read_tokenizer_model,
    train_bpe,
)
from mllama_lite.vlm import load


@a_bug(
    "leftmost-pair-first",
    "Merging takes the first pair from the left that is in the table, and not the pair "
    "of the lowest rank.",
    "tests/test_tokenizer.py::test_merging_by_hand_equals_tiktoken",
)
def leftmost_pair_first():
    def wrong(word, ranks):
        parts = [word[i : i + 1] for i in range(len(word))]
        while True:
            pairs = enumerate(zip(parts, parts[1:]))
            i = next((i for i, (a, b) in pairs if a + b in ranks), None)
            if i is None:
                return [ranks[part] for part in parts]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    with replaced(bpe_merge, wrong):
        yield


@a_bug(
    "image-by-its-name",
    "An image enters the list with the id that the tokenizer has for `<|image|>`, and not "
    "with the first id beyond the vocabulary, which is the model's.",
    "tests/test_tokenizer.py::test_special_tokens",
)
def image_by_its_name():
    right = Tokenizer.__init__

    def wrong(self, ranks):
        right(self, ranks)
        self.image_id = self.special["<|image|>"]

    with replaced(Tokenizer.__init__, wrong):
        yield


@a_bug(
    "begin-of-text-twice",
    "A chat template writes `<|begin_of_text|>`, and the tokenizer behind it puts another "
    "one in front.",
    "tests/test_tokenizer.py::test_dialogues",
)
def begin_of_text_twice():
    right = Tokenizer.encode_chat

    def wrong(self, messages):
        ids, images = right(self, messages)
        return [self.bos_id, *ids], images

    with replaced(Tokenizer.encode_chat, wrong):
        yield


def small_ranks():
    """The vocabulary of the shipped model."""
    return read_tokenizer_model(find_folder() / "tokenizer.model")


@a_check("words come back from their tokens")
def words_come_back():
    ranks = small_ranks()
    names = {rank: token for token, rank in ranks.items()}
    for text in ("What is this?", "a lighthouse", "Zürich, 📷", "<|eot_id|>"):
        word = text.encode()
        assert b"".join(names[id] for id in bpe_merge(word, ranks)) == word
        tokenizer = Tokenizer(ranks)
        assert tokenizer.decode(tokenizer.encode(text)) == text


@a_check("four words, merged by hand")
def four_words():
    counts = {b"tile": 4, b"tiles": 3, b"title": 2, b"mile": 1}
    ranks = train_bpe([word for word, n in counts.items() for _ in range(n)], 4)
    by_hand = {
        b"tiles": [259],
        b"titles": [257, 116, 256, 115],
        b"smile": [115, 109, 105, 256],
        b"untiled": [117, 110, 258, 100],
    }
    for word, ids in by_hand.items():
        assert bpe_merge(word, ranks) == ids


@a_check("200 words as tiktoken merges them")
def as_tiktoken():
    ranks, rng = small_ranks(), random.Random(0)
    fast = tiktoken.Encoding(
        "small", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    tokens = sorted(ranks, key=ranks.get)[256:]
    for _ in range(200):
        word = b"".join(rng.choices(tokens, k=3))
        assert bpe_merge(word, ranks) == fast._encode_single_piece(word)


QUESTION = [{"role": "user", "content": [ImagePart(), "What is the red digit?"]}]


@a_check("a conversation opens right, and has as many images as image tokens")
def opens_right():
    tokenizer = Tokenizer(small_ranks())
    ids, images = tokenizer.encode_chat(QUESTION)
    assert ids[0] == tokenizer.bos_id
    assert ids.count(tokenizer.image_id) == len(images) == 1
    assert max(ids) <= tokenizer.vocab_size  # the last row that an embedding has


@a_check("a conversation read back as text")
def read_back():
    tokenizer = Tokenizer(small_ranks())
    header = "<|start_header_id|>{}<|end_header_id|>\n\n"
    assert tokenizer.decode(tokenizer.encode_chat(QUESTION)[0]) == (
        "<|begin_of_text|>"
        + header.format("user")
        + "<|image|>What is the red digit?<|eot_id|>"
        + header.format("assistant")
    )


@a_check("a conversation's ids, counted by hand")
def ids_by_hand():
    ranks = small_ranks()
    tokenizer, n = Tokenizer(ranks), len(ranks)
    text = tokenizer.encode
    begin, start, end, over = n, n + 6, n + 7, n + 9
    wanted = [begin, start, *text("user"), end, *text("\n\n"), n + 256]
    wanted += [*text("What is the red digit?"), over]
    wanted += [start, *text("assistant"), end, *text("\n\n")]
    assert tokenizer.encode_chat(QUESTION)[0] == wanted


@a_check("an answer of the shipped model")
def answer_of_the_shipped_model():
    vlm = load(dtype="float32", device="cpu")
    ids, _ = vlm.tokenizer.encode_chat(QUESTION)
    picture = open_image(find_folder() / "pictures" / "tall.png")
    answer = vlm.generate(ids, [picture], max_new_tokens=8)
    assert vlm.tokenizer.decode(answer, skip_special=True).strip() == "9"
