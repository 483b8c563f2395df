"""Wrong answers to chapter 1's exercises."""

from mllama_lite.tokenizer import bpe_merge

RIGHT = {"split-by-eye": 14, "ranks-shuffled": "b"}


def one_by_one(pieces):
    for piece in pieces:
        yield piece.decode(errors="replace")


def all_at_the_end(pieces):
    yield b"".join(pieces).decode(errors="replace")


def until_it_decodes(pieces):
    """Waits for a moment at which nothing is unfinished."""
    held = b""
    for piece in pieces:
        held += piece
        try:
            text, held = held.decode(), b""
        except UnicodeDecodeError:
            continue
        if text:
            yield text
    if held:
        yield held.decode(errors="replace")


def what_is_broken_left_out(pieces):
    for piece in pieces:
        if text := piece.decode(errors="ignore"):
            yield text


def the_rest_forgotten(pieces):
    held = b""
    for piece in pieces:
        held += piece
        for end in range(len(held), 0, -1):
            try:
                text = held[:end].decode()
            except UnicodeDecodeError:
                continue
            yield text
            held = held[end:]
            break


def leftmost(word, ranks):
    parts = [word[i : i + 1] for i in range(len(word))]
    i = 0
    while i + 1 < len(parts):
        if parts[i] + parts[i + 1] in ranks:
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
            i = 0
        else:
            i += 1
    return [ranks[part] for part in parts]


def longest_token_first(word, ranks):
    ids = []
    while word:
        size = next(n for n in range(len(word), 0, -1) if word[:n] in ranks)
        ids.append(ranks[word[:size]])
        word = word[size:]
    return ids


def left_neighbour_not_asked_again(word, ranks):
    parts = [word[i : i + 1] for i in range(len(word))]
    found = [ranks.get(a + b) for a, b in zip(parts, parts[1:])]
    while known := [rank for rank in found if rank is not None]:
        i = found.index(min(known))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
        del found[i]
        if i < len(found):
            found[i] = ranks.get(parts[i] + parts[i + 1])
    return [ranks[part] for part in parts]


def fewest(word, ranks):
    best = [[]]
    for end in range(1, len(word) + 1):
        ways = [(i, word[i:end]) for i in range(end) if word[i:end] in ranks]
        best.append(min((best[i] + [ranks[t]] for i, t in ways), key=len))
    return best[-1]


WRONG = {
    "split-by-eye": [
        6,  # words between spaces
        12,  # a space goes before digits too
        13,  # 12345 stays whole
        15,  # the line break by itself
        34,  # characters
    ],
    "ranks-shuffled": ["a", "c", "d"],
    "stream-by-hand": [
        one_by_one,
        all_at_the_end,
        until_it_decodes,
        what_is_broken_left_out,
        the_rest_forgotten,
    ],
    "merge-few-look-ups": [
        bpe_merge,  # right, and asks again and again
        leftmost,
        longest_token_first,
        left_neighbour_not_asked_again,
    ],
    "fewest-tokens": [
        (bpe_merge, [b"ab"] * 5 + [b"bcdefgh"] * 4, b"abcdefgh"),
        (longest_token_first, [b"ab"] * 5 + [b"bcdefgh"] * 4, b"abcdefgh"),
        (fewest, [b"tile", b"tiles", b"title", b"mile"], b"smiles"),  # no merge at all
        (fewest, [b"ab"] * 5 + [b"bcd"] * 4, b"abcd"),  # too little is lost
        (fewest, [b"ab"] * 50 + [b"bcdefgh"] * 40, b"abcdefgh"),  # too many words
        (fewest, ["ab"] * 5 + ["bcdefgh"] * 4, "abcdefgh"),  # text, not bytes
        (lambda word, ranks: [len(ranks)], [b"ab"], b"ab"),
    ],
}
