"""Checks of chapter 1's exercises."""

import codecs
import random

import regex

from exercises import exercise, expect
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.tokenizer import (
    SPLIT_PATTERN,
    bpe_merge,
    read_tokenizer_model,
    train_bpe,
)


def small_ranks():
    """A vocabulary that was learned in one training: the shipped model's."""
    return read_tokenizer_model(find_folder() / "tokenizer.model")


def some_words(ranks, count):
    """Words of a few tokens each, and some of random bytes."""
    rng = random.Random(0)
    tokens = sorted(ranks, key=ranks.get)
    for _ in range(count):
        yield b"".join(rng.choices(tokens[256:], k=rng.randint(1, 4)))
        yield rng.randbytes(rng.randint(1, 8))


@exercise("split-by-eye")
def split_by_eye(answer):
    text = "She'll pay 12345.50 for  7 boats!\n"
    pieces = len(regex.findall(SPLIT_PATTERN, text))
    expect(answer != len(text.split()), "the pattern cuts inside these, too")
    expect(answer != pieces - 2, "may a space stand in front of a digit?")
    expect(answer != pieces - 1, "how many digits does a piece hold at most?")
    expect(answer != pieces + 1, "what does a run of other signs take with it?")
    expect(answer == pieces, "go through the table of alternatives, piece by piece")


@exercise("ranks-shuffled")
def ranks_shuffled(answer):
    ranks = small_ranks()
    numbers = list(range(256, len(ranks)))
    random.Random(0).shuffle(numbers)
    shuffled = {t: r if r < 256 else numbers[r - 256] for t, r in ranks.items()}
    as_before, comes_back = True, True
    for word in some_words(ranks, 100):
        cuts = []
        for table in (ranks, shuffled):
            token = {rank: token for token, rank in table.items()}
            cuts.append([token[id] for id in bpe_merge(word, table)])
        as_before = as_before and cuts[0] == cuts[1]
        comes_back = comes_back and b"".join(cuts[1]) == word
    expect(answer != "a" or as_before, "what is the rank for, besides being a number?")
    expect(answer != "c" or not comes_back, "which ranks does decoding compare?")
    expect(answer != "d", "the single bytes are still there")
    expect(answer == "b", "the answer is one of the letters")


@exercise("stream-by-hand")
def stream_by_hand(stream):
    rng = random.Random(0)
    texts = ["A boat.", "né à Zürich", "灯台の写真 📷💪!", "дом🚢", ""]
    for text in texts * 4:
        data, pieces = text.encode(), []
        while data:
            size = rng.randint(1, 4)
            pieces, data = [*pieces, data[:size]], data[size:]
        given = []
        for piece in stream(_watched(pieces, given)):
            expect(isinstance(piece, str), f"it gives {type(piece).__name__}, not text")
            given.append(piece)
        broken = next((p for p in given if "\N{REPLACEMENT CHARACTER}" in p), None)
        expect(broken is None, f"{text!r} is spoilt: it gives {broken!r}")
        expect(all(given), f"for {text!r} it gives a piece with nothing in it")
        expect("".join(given) == text, f"{text!r} becomes {''.join(given)!r}")
    cut = "".join(stream([b"boat ", b"\xf0\x9f", b"\x93"]))
    expect(
        cut == "boat \N{REPLACEMENT CHARACTER}",
        f"a text that ends inside a character becomes {cut!r}",
    )


def _watched(pieces, given):
    """Hand pieces over one by one, and see that what is complete was given before."""
    decoder, complete = codecs.getincrementaldecoder("utf-8")(), ""
    for piece in pieces:
        so_far = "".join(given)
        late = f"the bytes of {complete!r} are there, and it has given {so_far!r}"
        expect(len(so_far) >= len(complete), late)
        yield piece
        complete += decoder.decode(piece)


class _Counted(dict):
    """A table that counts how often it is asked."""

    asked = 0

    def get(self, *args):
        self.asked += 1
        return super().get(*args)

    def __getitem__(self, token):
        self.asked += 1
        return super().__getitem__(token)

    def __contains__(self, token):
        self.asked += 1
        return super().__contains__(token)


@exercise("merge-few-look-ups")
def merge_few_look_ups(merge):
    for table in (small_ranks(), clashing_ranks()):
        for word in some_words(table, 200):
            got = merge(word, table)
            expect(
                got == bpe_merge(word, table),
                f"{word!r} becomes {shortened(got)}, and not what bpe_merge gives",
            )
    table = _Counted(train_bpe([b"a" * 64] * 2, 20))
    word = b"a" * 400
    expect(
        merge(word, table) == bpe_merge(word, dict(table)), "400 letters a are wrong"
    )
    expect(
        table.asked <= 10 * len(word),
        f"for a word of 400 bytes the table is asked {table.asked:,} times",
    )


def shortened(value):
    text = repr(value)
    return text if len(text) < 60 else text[:57] + "..."


def clashing_ranks():
    """A table in which tokens overlap at every turn: no training would learn it."""
    rng = random.Random(0)
    tokens = [bytes([i]) for i in range(256)]
    while len(tokens) < 300:
        token = bytes(rng.choices(b"abcd", k=rng.randint(2, 4)))
        if token not in tokens:
            tokens.append(token)
    return {token: rank for rank, token in enumerate(tokens)}


def shortest(word, ranks):
    """How many tokens a word takes at least."""
    longest = max(map(len, ranks))
    best = [0]  # of the first n bytes
    for end in range(1, len(word) + 1):
        begins = range(max(0, end - longest), end)
        best.append(1 + min(best[i] for i in begins if word[i:end] in ranks))
    return best[-1]


@exercise("fewest-tokens")
def fewest_tokens(fewest, words, word):
    for ranks in (small_ranks(), clashing_ranks()):
        names = {rank: token for token, rank in ranks.items()}
        for one in some_words(ranks, 100):
            got = list(fewest(one, ranks))
            known = all(id in names for id in got)
            expect(
                known and b"".join(names[id] for id in got) == one,
                f"the tokens for {one!r} do not spell it",
            )
            fewer = len(got) > shortest(one, ranks)
            expect(not fewer, f"{one!r} takes {len(got)} tokens, and fewer would do")
    words = list(words)
    expect(
        all(isinstance(one, bytes) for one in [*words, word]),
        'the words are not all bytes, as in b"tile"',
    )
    expect(len(words) <= 20, f"the text to learn from has {len(words)} words")
    expect(len(word) <= 200, f"the word has {len(word)} bytes: 200 are enough")
    learned = train_bpe(words, 100)
    merged, needed = len(bpe_merge(word, learned)), shortest(word, learned)
    expect(
        merged >= 3 * needed,
        f"merging takes {merged} tokens for {word!r}, where {needed} would do",
    )
