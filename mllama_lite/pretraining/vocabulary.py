# Generated from notebooks/16_text.ipynb: edit there, or here and run `make update`.
"""A vocabulary for a corpus: chapter 1's merges, with pairs counted once.

Built in chapter 16, notebooks/16_text.ipynb.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable

from mllama_lite.tokenizer import SPLIT_PATTERN


def count_words(texts: Iterable[str]) -> Counter[bytes]:
    """How often each word occurs, cut as Llama 3's tokenizer cuts."""
    import regex  # tiktoken needs it too

    pattern, counts = regex.compile(SPLIT_PATTERN), Counter[str]()
    for text in texts:
        counts.update(pattern.findall(text))
    return Counter({word.encode(): count for word, count in counts.items()})


def learn_merges(counts: Counter[bytes], num_merges: int) -> dict[bytes, int]:
    """Learn a byte-level BPE vocabulary: the same as `train_bpe`, in a fraction of the time.

    A merge changes few words, and in them few pairs. So all pairs are counted once, and
    then only what a merge changes; a heap knows the most frequent one.

    Args:
        counts: how often each word occurs, see `count_words`.
        num_merges: how many merges to learn at most.

    Returns:
        dict from a token's bytes to its rank, as `train_bpe` returns it.
    """
    ranks = {bytes([i]): i for i in range(256)}
    words = [[word[i : i + 1] for i in range(len(word))] for word in counts]
    times = list(counts.values())
    pairs: Counter[tuple[bytes, bytes]] = Counter()
    where: dict[tuple[bytes, bytes], set[int]] = defaultdict(set)
    for i, word in enumerate(words):
        for pair in zip(word, word[1:]):
            pairs[pair] += times[i]
            where[pair].add(i)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    for _ in range(num_merges):
        while heap and -heap[0][0] != pairs[heap[0][1]]:
            heapq.heappop(heap)  # its count has changed since: it is there once more
        if not heap or -heap[0][0] < 2:
            break
        best = heap[0][1]
        changed = _merge(words, times, pairs, where, best)
        ranks.setdefault(best[0] + best[1], len(ranks))
        for pair in changed:
            heapq.heappush(heap, (-pairs[pair], pair))
    return ranks


def _merge(
    words: list[list[bytes]],
    times: list[int],
    pairs: Counter[tuple[bytes, bytes]],
    where: dict[tuple[bytes, bytes], set[int]],
    best: tuple[bytes, bytes],
) -> set[tuple[bytes, bytes]]:
    """Merge a pair in every word that has it; returns the pairs whose count changed."""
    merged, changed = best[0] + best[1], {best}
    for i in where.pop(best):
        word, place = words[i], 0
        for pair in zip(word, word[1:]):
            pairs[pair] -= times[i]
            changed.add(pair)
        while place + 1 < len(word):
            if (word[place], word[place + 1]) == best:
                word[place : place + 2] = [merged]
            place += 1
        for pair in zip(word, word[1:]):
            pairs[pair] += times[i]
            where[pair].add(i)
            changed.add(pair)
    return changed
