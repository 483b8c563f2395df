# Generated from notebooks/01_tokenizer.ipynb: edit there, or here and run `make update`.
"""Text to token ids and back: byte-level BPE, Llama 3's tokenizer, the chat format.

Built in chapter 1, notebooks/01_tokenizer.ipynb. Splitting and merging are done by
tiktoken, as in Meta's code; `train_bpe` and `bpe_merge` are the same idea in plain
Python.
"""

import base64
import codecs
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any

import tiktoken

from mllama_lite.errors import InputError, shown
from mllama_lite.files import (
    ANY_OBJECT,
    ANY_TEXT,
    check_fields,
    exists,
    list_of,
    object_of,
    one_of,
    parse_json,
    read_bytes,
    whole,
    written_aside,
)


def bpe_merge(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Split one word into tokens by merging neighbours, lowest rank first.

    Llama 3 looks a word up whole before it merges: 588 of its tokens cannot be reached
    by merging alone.

    Args:
        word: bytes of one word (a piece that the split pattern cut out).
        ranks: dict from a token's bytes to its rank; a lower rank was learned earlier.

    Returns:
        list of token ids (the ranks), in order.

    Raises:
        KeyError: a single byte of the word is missing from `ranks`.

    Source: Sennrich et al. 2016, on bytes as in Radford et al. 2019.
    """
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 1:
        candidates = [ranks.get(a + b) for a, b in zip(parts, parts[1:])]
        known = [rank for rank in candidates if rank is not None]
        if not known:
            break
        i = candidates.index(min(known))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return [ranks[part] for part in parts]


def train_bpe(words: Iterable[bytes], num_merges: int) -> dict[bytes, int]:
    """Learn a byte-level BPE vocabulary: the 256 bytes, then the most frequent pairs.

    Args:
        words: iterable of bytes, the words of a text, cut by the split pattern.
        num_merges: how many merges to learn at most.

    Returns:
        dict from a token's bytes to its rank; ranks 0 to 255 are the single bytes.
        Training ends early when no pair occurs twice.

    Source: Sennrich et al. 2016; ties go to the pair that compares smallest.
    """
    ranks = {bytes([i]): i for i in range(256)}
    counts = Counter(words)
    parts = {word: [word[i : i + 1] for i in range(len(word))] for word in counts}
    for _ in range(num_merges):
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in counts.items():
            for pair in zip(parts[word], parts[word][1:]):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        if pairs[best] < 2:
            break
        merged = best[0] + best[1]
        # Two different pairs can spell the same token; it keeps its first rank.
        ranks.setdefault(merged, len(ranks))
        for symbols in parts.values():
            i = 0
            while i + 1 < len(symbols):
                if (symbols[i], symbols[i + 1]) == best:
                    symbols[i : i + 2] = [merged]
                i += 1
    return ranks


# The split pattern of Llama 3: contractions, letters, one to three digits, punctuation,
# line breaks, spaces. Source: llama_models/llama3/tokenizer.py, `pat_str`.
SPLIT_PATTERN = "|".join(
    [
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    ]
)

NAMED_SPECIAL_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
]
NUM_SPECIAL_TOKENS = 256
# Those that every Llama 3 has in the same place; 3.1 renamed some of the others.
FRAMING_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)


def special_tokens(num_base_tokens: int) -> dict[str, int]:
    """Names and ids of the 256 special tokens that follow the merged ones.

    Args:
        num_base_tokens: size of the vocabulary without special tokens (128,000).

    Returns:
        dict from name to id. Unnamed places are `<|reserved_special_token_N|>`.

    Source: llama_models/llama3/tokenizer.py, `Tokenizer.__init__`.
    """
    num_reserved = NUM_SPECIAL_TOKENS - len(NAMED_SPECIAL_TOKENS)
    reserved = [f"<|reserved_special_token_{2 + i}|>" for i in range(num_reserved)]
    names = NAMED_SPECIAL_TOKENS + reserved
    return {name: num_base_tokens + i for i, name in enumerate(names)}


MOST_TOKENIZER = 1 << 25  # bytes; Llama 3's files have 2 and 17 million


def read_tokenizer_model(path: Path | str) -> dict[bytes, int]:
    """Read Meta's `tokenizer.model`: a line a token, base64 bytes, a space, the rank.

    Args:
        path: path of the file.

    Returns:
        dict from a token's bytes to its rank.

    Raises:
        InputError: the file is missing, or a line of it cannot be read.
    """
    path = Path(path)
    if not exists(path):
        raise InputError(
            f"No tokenizer file at {path}: expected Meta's tokenizer.model; "
            "copy it there from the model's download."
        )
    ranks = {}
    lines = read_bytes(path, MOST_TOKENIZER).splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            encoded, rank = line.split()
            token = base64.b64decode(encoded, validate=True)
            if not rank.isdigit() or len(rank) > 9 or token in ranks:
                raise ValueError
        except ValueError:
            raise InputError(
                f"Line {number} of {path} is {shown(line)}: expected base64 of a new "
                "token, a space and a number; download the file again."
            ) from None
        ranks[token] = int(rank)
    _check_ranks(ranks, path)
    return ranks


def write_tokenizer_model(ranks: dict[bytes, int], path: Path | str) -> None:
    """Write ranks (dict from bytes to rank) in the format of `read_tokenizer_model`."""
    with written_aside(path) as part, open(part, "wb") as file:
        for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
            file.write(base64.b64encode(token) + b" %d\n" % rank)


TOKENIZER_FIELDS = {
    "model": ANY_OBJECT,
    "added_tokens": list_of(ANY_OBJECT, most=10_000),
}
BPE_FIELDS = {"type": one_of("BPE"), "vocab": object_of(whole(0, 2**31), 2**22)}
ADDED_FIELDS = {"id": whole(0, 2**31), "content": ANY_TEXT}


def read_tokenizer_json(path: Path | str) -> dict[bytes, int]:
    """Read the ranks out of the hub's `tokenizer.json`.

    The hub writes the bytes of a token as printable characters (GPT-2's table), and
    Llama 3's ids are the ranks, so the merge list isn't needed.

    Args:
        path: path of the file.

    Returns:
        dict from a token's bytes to its rank.

    Raises:
        InputError: the file is no byte-level BPE in the hub's format, or its special
            tokens are not where Llama 3 has them.
    """
    document = parse_json(read_bytes(path, MOST_TOKENIZER), path)
    given = check_fields(document, TOKENIZER_FIELDS, path)
    model = check_fields(given["model"], BPE_FIELDS, path, "model.")
    added = [
        check_fields(token, ADDED_FIELDS, path, "added_tokens.")
        for token in given["added_tokens"]
    ]
    special = {token["id"]: token["content"] for token in added}
    byte_of = printable_bytes()
    try:
        ranks = {
            bytes(byte_of[character] for character in token): rank
            for token, rank in model["vocab"].items()
            if special.get(rank) != token  # some files list special tokens here too
        }
    except KeyError as error:
        raise InputError(
            f"{path} has {error} in a token: expected GPT-2's characters for bytes, as "
            "in the hub's tokenizer.json of a Llama 3 model; download the file again."
        ) from None
    _check_ranks(ranks, path)
    wanted = special_tokens(len(ranks))
    for token in added:
        name, id = token["content"], token["id"]
        if name in FRAMING_TOKENS and id != wanted[name]:
            raise InputError(
                f"{path} has id {id} for {name}: expected {wanted[name]}, as in Llama "
                "3; use the tokenizer of a Llama 3 model."
            )
    return ranks


def printable_bytes() -> dict[str, int]:
    """GPT-2's table from a printable character to the byte that it stands for."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + i): byte for i, byte in enumerate(rest)}


def _check_ranks(ranks: dict[bytes, int], path: str | PathLike) -> None:
    """Every byte has a token, and the ranks count up from 0 without a gap."""
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or sorted(ranks.values()) != list(range(len(ranks))):
        what = f"no token for byte {missing[0]}" if missing else "a gap in its ranks"
        raise InputError(
            f"{path} has {what} among {len(ranks)} tokens: expected all 256 bytes and "
            "ranks from 0 without a gap; download the file again."
        )


# Meta cuts very long texts before tiktoken sees them; the cuts can change the tokens.
MAX_CHARACTERS = 400_000
MAX_RUN = 25_000


def split_long_text(text: str) -> list[str]:
    """Cut a text every 400,000 characters, and inside runs of 25,000 of one kind.

    A run is consecutive whitespace, or consecutive characters that are none. Meta's code
    does this to keep tiktoken within its limits, and the cuts can change the tokens.

    Args:
        text: any string.

    Returns:
        list of strings whose concatenation is the text.

    Source: llama_models/llama3/tokenizer.py, `Tokenizer.encode`.
    """
    pieces: list[str] = []
    for begin in range(0, len(text), MAX_CHARACTERS):
        block = text[begin : begin + MAX_CHARACTERS]
        cuts, position = [0], 0
        for _, run in groupby(block, str.isspace):
            length = len(list(run))
            cuts.extend(range(position + MAX_RUN, position + length, MAX_RUN))
            position += length
        cuts.append(len(block))
        pieces.extend(block[a:b] for a, b in zip(cuts, cuts[1:]))
    return pieces


@dataclass(frozen=True)
class ImagePart:
    """An image among the parts of a message, in whatever form the caller keeps it.

    Attributes:
        source: a path, bytes, a PIL image, or None where only its place matters.
    """

    source: Any = None


@dataclass(frozen=True)
class AudioPart:
    """A sound among the parts of a message; chapter 18 has models that hear.

    Attributes:
        source: the path of a WAV file, samples, or None where only its place matters.
    """

    source: Any = None


def is_sound_name(text: str) -> bool:
    """Whether a text is surely meant as the name of a sound: one word that ends so."""
    return text.lower().endswith((".wav", ".wave")) and len(text.split()) == 1


class Tokenizer:
    """Llama 3's tokenizer: text to token ids and back.

    Args:
        ranks: dict from a token's bytes to its rank, all 256 single bytes among them.

    Attributes:
        special: dict from the name of a special token to its id.
        vocab_size: number of ids that the model's head can predict (128,256).
        image_id: the id that the *model* has for an image, `vocab_size` (128,256): the
            first of the embedding's extra rows. The tokenizer's own id of `<|image|>`
            is 128,011, and no model ever sees it.
        bos_id, pad_id: begin of text, padding.
        stop_ids: frozenset of the ids that end an answer.

    Source: llama_models/llama3/tokenizer.py and chat_format.py.
    """

    def __init__(self, ranks: dict[bytes, int]) -> None:
        if not isinstance(ranks, dict) or not all(type(t) is bytes for t in ranks):
            raise InputError(
                f"The ranks are {shown(ranks)}: expected a dict from a token's bytes to "
                "its rank; read a tokenizer's file with Tokenizer.from_file."
            )
        _check_ranks(ranks, "The tokenizer")
        self.special = special_tokens(len(ranks))
        self.vocab_size = len(ranks) + NUM_SPECIAL_TOKENS
        self.image_id = self.vocab_size
        self.bos_id = self.special["<|begin_of_text|>"]
        self.pad_id = self.special["<|finetune_right_pad_id|>"]
        ends = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")
        self.stop_ids = frozenset(self.special[name] for name in ends)
        self._encoding = tiktoken.Encoding(
            name="llama3",
            pat_str=SPLIT_PATTERN,
            mergeable_ranks=ranks,
            special_tokens=self.special,
        )
        self._special_ids = frozenset(self.special.values()) | {self.image_id}

    @classmethod
    def from_file(cls, path: Path | str) -> "Tokenizer":
        """Read Meta's `tokenizer.model` or the hub's `tokenizer.json`.

        Raises:
            InputError: the file is missing or not of that format.
        """
        path = Path(path)
        is_json = path.suffix == ".json"
        return cls((read_tokenizer_json if is_json else read_tokenizer_model)(path))

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Token ids of a text. The text never yields a special token.

        Args:
            text: any string; "<|eot_id|>" in it is read as seven ordinary tokens.
            bos: put `<|begin_of_text|>` first.
            eos: put `<|end_of_text|>` last.

        Returns:
            list of token ids.

        Raises:
            InputError: `text` is not a string.
        """
        if not isinstance(text, str):
            raise InputError(
                f"The text to encode is a {type(text).__name__}: expected a string; "
                "pass images as items of a message's content."
            )
        ids = [self.bos_id] if bos else []
        for piece in split_long_text(text):
            ids += self._encoding.encode(piece, disallowed_special=())
        return ids + [self.special["<|end_of_text|>"]] if eos else ids

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of token ids; bytes that are no UTF-8 become U+FFFD.

        Args:
            ids: iterable of token ids, the model's image id included.
            skip_special: leave special tokens out instead of writing their names.

        Returns:
            str.

        Raises:
            InputError: an id is outside the vocabulary.
        """
        if isinstance(ids, str) or not isinstance(ids, Iterable):
            raise InputError(
                f"The ids to decode are {shown(ids)}: expected token ids, one after "
                "another; put a single one into a list."
            )
        pieces = (
            self.token_bytes(i)
            for i in ids
            if not (skip_special and self.is_special(i))
        )
        return b"".join(pieces).decode("utf-8", errors="replace")

    def token_bytes(self, id: int) -> bytes:
        """The bytes that one token id stands for.

        Raises:
            InputError: the id is outside the vocabulary.
        """
        whole = hasattr(id, "__index__") and not isinstance(id, bool)
        if whole and id == self.image_id:
            return b"<|image|>"
        if not whole or not 0 <= id < self.vocab_size:
            raise InputError(
                f"Token id {shown(id)} is not in the vocabulary: expected a whole "
                f"number from 0 to {self.vocab_size}; check which tokenizer made it."
            )
        return self._encoding.decode_single_token_bytes(id)

    def is_special(self, id: int) -> bool:
        """Whether a token id is one of the special tokens or the model's image token."""
        return id in self._special_ids

    def stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text of token ids as they come, special tokens left out.

        A character can be spread over several tokens: its bytes are held back until it
        is complete, so that no piece ever holds half a character.

        Args:
            ids: iterable of token ids; may be a generator that is still running.

        Yields:
            str, never empty. All pieces joined equal `decode(ids, skip_special=True)`.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for id in ids:
            if not self.is_special(id):
                if piece := decoder.decode(self.token_bytes(id)):
                    yield piece
        if rest := decoder.decode(b"", final=True):
            yield rest

    def encode_message(
        self, role: str, content: str | list[Any], audio_id: int | None = None
    ) -> tuple[list[int], list[Any]]:
        """One message of a conversation: header, content, end of turn.

        Args:
            role: "system", "user", "assistant" or "tool".
            content: text, or a list of parts. A part is text, an ImagePart, an
                AudioPart, or one of the dicts that others use: {"type": "text",
                "text": ...}, {"type": "image", "image": ...} and {"type": "audio",
                "audio": ...}.
            audio_id: the model's id of a sound; None for a model that does not hear.

        Returns:
            (ids, sources): token ids with `image_id` in the place of every image and
            `audio_id` in that of every sound, and the sources of both in order.

        Raises:
            InputError: an unknown role; a part of another kind; a sound for a model
                that does not hear.

        Source: llama_models/llama3/chat_format.py, `ChatFormat.encode_message`.
        """
        ids, sources = self.encode_header(role), []
        for part in content if isinstance(content, list) else [content]:
            match part:
                case str(text) | {"type": "text", "text": str(text)}:
                    ids += self.encode(text)
                case ImagePart(source) | {"type": "image", "image": source}:
                    ids.append(self.image_id)
                    sources.append(source)
                case AudioPart(source) | {"type": "audio", "audio": source}:
                    if audio_id is None:
                        raise InputError(
                            f"A part of a message is a sound, {shown(source)}: expected "
                            "text or an image, since this model does not hear; ask one "
                            "that does (chapter 18)."
                        )
                    ids.append(audio_id)
                    sources.append(source)
                case _:
                    raise InputError(
                        f"A part of a message is {shown(part)}: expected text or an "
                        "image; write text as a string and an image as ImagePart(...)."
                    )
        return ids + [self.special["<|eot_id|>"]], sources

    def encode_chat(
        self, messages: Iterable[dict[str, Any]]
    ) -> tuple[list[int], list[Any]]:
        """A conversation up to the point where the assistant is to answer.

        Args:
            messages: list of {"role": ..., "content": ...}, see `encode_message`.

        Returns:
            (ids, images): token ids from `<|begin_of_text|>` to the header of the
            answer, and all images in order.

        Raises:
            InputError: a message without role or content, or with an unknown role.
        """
        ids, images = [self.bos_id], []
        for message in messages:
            if not isinstance(message, dict) or not {"role", "content"} <= set(message):
                raise InputError(
                    f"A message is {message!r}: expected a dict with the keys 'role' "
                    "and 'content'; add the missing ones."
                )
            new_ids, new_images = self.encode_message(
                message["role"], message["content"]
            )
            ids += new_ids
            images += new_images
        return ids + self.encode_header("assistant"), images

    def encode_header(self, role: str) -> list[int]:
        """The token ids that open a message; see `encode_message` for the roles."""
        roles = {
            "system": "system",
            "user": "user",
            "assistant": "assistant",
            "tool": "ipython",
        }
        if role not in roles:
            raise InputError(
                f"A message has the role {role!r}: expected one of {', '.join(roles)}; "
                "rename it."
            )
        return [
            self.special["<|start_header_id|>"],
            *self.encode(roles[role]),
            self.special["<|end_header_id|>"],
            *self.encode("\n\n"),
        ]
