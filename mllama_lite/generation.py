# Generated from notebooks/10_inference.ipynb: edit there, or here and run `make update`.
"""The loop that writes: caches kept from token to token, sampling, stopping.

Built in chapter 10, notebooks/10_inference.ipynb. Token ids in, token ids out; words,
files and conversations are in vlm.py.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real

import torch

from mllama_lite.attention import KVCache
from mllama_lite.cross_attention import VisionCache, VisionContext, visible_ranges
from mllama_lite.errors import InputError, shown
from mllama_lite.model import Mllama
from mllama_lite.tiles import Tiles


@dataclass(frozen=True)
class Sampling:
    """How the next token is picked.

    Attributes:
        temperature: divides the logits; 0 takes the most likely token (greedy).
        top_k: keep only the k most likely tokens, and any as likely as the last of
            them; 0 keeps all.
        top_p: keep a token if all likelier ones together have at most this probability;
            1 keeps all.
        min_p: keep a token if it is at least this fraction as likely as the likeliest;
            0 keeps all.
        seed: of the random numbers; None for different ones every time.

    Raises:
        InputError: a setting is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        whole = (int, type(None))
        for name, kind, fits, expected in (
            (
                "temperature",
                Real,
                lambda x: 0 <= x < float("inf"),
                "0 (greedy) or more",
            ),
            ("top_k", int, lambda x: x >= 0, "a whole number, 0 (all) or more"),
            ("top_p", Real, lambda x: 0 < x <= 1, "more than 0 and at most 1 (all)"),
            ("min_p", Real, lambda x: 0 <= x <= 1, "0 (all) to 1"),
            (
                "seed",
                whole,
                lambda x: x is None or 0 <= x < 2**64,
                "0 to 2^64 - 1, or None",
            ),
        ):
            value = getattr(self, name)
            fitting = isinstance(value, kind) and not isinstance(value, bool)
            if not (fitting and fits(value)):
                raise InputError(
                    f"{name} is {shown(value)}: expected {expected}; change it."
                )


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """The distribution from which the next token is drawn.

    Args:
        logits: fp32 [B, W].
        sampling: Sampling with a temperature above 0.

    Returns:
        fp32 [B, W], rows sum to 1; tokens that are cut off have 0.

    Source: llama_models/llama3/generation.py, `sample_top_p`; Holtzman et al. 2020;
    Nguyen et al. 2024.
    """
    # Division by less could overflow; it would choose the likeliest token anyway.
    probs = (logits / max(sampling.temperature, 1e-30)).softmax(dim=-1)
    if 0 < sampling.top_k < probs.shape[-1]:
        smallest = probs.topk(sampling.top_k).values[:, -1:]  # [B, 1]
        probs = probs.masked_fill(probs < smallest, 0.0)
        probs = probs / probs.sum(dim=-1, keepdim=True)  # top-p counts what is left
    if sampling.top_p < 1:
        ordered, index = probs.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered  # mass of all likelier tokens
        kept = ordered.masked_fill(before > sampling.top_p, 0.0)
        probs = torch.zeros_like(probs).scatter(-1, index, kept)
    if sampling.min_p > 0:
        likeliest = probs.max(dim=-1, keepdim=True).values
        probs = probs.masked_fill(probs < sampling.min_p * likeliest, 0.0)
    return probs / probs.sum(dim=-1, keepdim=True)


class Sampler:
    """Picks tokens; keeps the random state from one to the next.

    Args:
        sampling: Sampling.
        device: of the logits.
    """

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self.generator = torch.Generator(device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """fp32 [B, W] to int [B]. InputError if a row's largest is no finite number."""
        if not logits.amax(dim=-1).isfinite().all():
            raise InputError(
                "The model's logits are not finite: expected numbers; its weights or "
                "an adapter's are damaged, or the dtype is too small, as float16 can "
                "be: load it anew, or in bfloat16."
            )
        if self.sampling.temperature == 0:
            return logits.argmax(dim=-1)
        probs = probabilities(logits, self.sampling)
        return torch.multinomial(probs, 1, generator=self.generator)[:, 0]


class Session:
    """Sequences in progress: what a model keeps from one token to the next.

    One cache holds the tokens, the other the images, and neither is ever computed
    again. Rows may have different lengths; slot j of the cache is position j.

    Args:
        model: Mllama.
        batch: B.
        capacity: tokens a row can have before the cache has to grow.
        static: read the whole cache at every step, so that each has the same shapes.
    """

    def __init__(
        self, model: Mllama, batch: int, capacity: int, static: bool = False
    ) -> None:
        self.model = model
        self.cache = KVCache(capacity)
        self.cache.window = capacity if static else None
        self.vision_cache: VisionCache | None = None
        self.num_images = [0] * batch
        self.lengths = [0] * batch
        # What every token after the prompt sees.
        self._later: VisionContext | None = None

    def extend(
        self, rows: Sequence[list[int]], images: Sequence[list[Tiles]]
    ) -> torch.Tensor:
        """Take in more of every row and return the logits that follow.

        Args:
            rows: for each row, all its token ids, those already taken in included.
            images: for each row, all its Tiles, those already seen included.

        Returns:
            fp32 [B, W], for the token after each row's last.

        Raises:
            ValueError: a row has nothing new, or a batch that saw images gets more.
        """
        starts, new = self.lengths, [row[n:] for row, n in zip(rows, self.lengths)]
        length = max(map(len, new))
        if not all(new):
            raise ValueError("every row needs at least one new token")
        device = self.model.device
        self._see([row[n:] for row, n in zip(images, self.num_images)])
        ranges = [
            visible_ranges(row, self.model.config.image_token_index) for row in rows
        ]
        tokens = torch.zeros(len(rows), length, dtype=torch.long)  # [B, T]
        for i, row in enumerate(new):
            tokens[i, : len(row)] = torch.tensor(row)
        self.cache.reserve(self.cache.length + length)
        seen = self.vision_cache
        vision = None if seen is None else seen.context(ranges, starts, length)
        last = torch.tensor([len(row) - 1 for row in new], device=device)
        static, self.cache.window = self.cache.window is not None, None
        positions = self._positions(torch.tensor(starts), length)
        logits = self.model(
            tokens.to(device), self.cache, positions, None, vision, last
        )
        self.lengths = [len(row) for row in rows]
        self.cache.length = max(self.lengths)
        self.cache.window = self.cache.capacity if static else None
        self._later = None if seen is None else seen.context(ranges, self.lengths, 1)
        self._next = torch.tensor(self.lengths, device=device)  # [B]
        return logits[:, 0]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        """Take in one token of every row and return the logits that follow.

        Args:
            tokens: int [B], on the model's device.

        Returns:
            fp32 [B, W].
        """
        self.cache.reserve(self.cache.length + 1)
        if self.cache.window is not None:
            self.cache.window = self.cache.capacity
        positions = self._positions(self._next, 1)
        logits = self.model(tokens[:, None], self.cache, positions, None, self._later)
        self.lengths = [n + 1 for n in self.lengths]
        self.cache.length = max(self.lengths)
        self._next += 1
        return logits[:, 0]

    def _positions(self, starts: torch.Tensor, length: int) -> torch.Tensor | None:
        """Positions of T tokens [B, T]; None where every row is at the same place."""
        if self.cache.window is None and len(set(self.lengths)) == 1:
            return None
        steps = torch.arange(length, device=self.model.device)
        return starts.to(self.model.device)[:, None] + steps

    def _see(self, images: list[list[Tiles]]) -> None:
        """Encode the new images of each row and keep what text looks at."""
        if not any(images):
            return
        if self.vision_cache is not None and len(images) > 1:
            raise ValueError("images that come later are for a session of one row")
        new, old = self.model.vision_cache(images), self.vision_cache
        assert new is not None
        self.vision_cache = new if old is None else old.extended(new)
        self.num_images = [n + len(row) for n, row in zip(self.num_images, images)]


@torch.no_grad()
def generate(
    model: Mllama,
    rows: Sequence[list[int]],
    images: Sequence[list[Tiles]],
    max_new_tokens: int = 64,
    stop_ids: Collection[int] = (),
    sampling: Sampling = Sampling(),
    session: Session | None = None,
) -> Iterator[list[int | None]]:
    """Write on after several prompts at once, a token of each at a time.

    Args:
        model: Mllama.
        rows: for each row, its token ids.
        images: for each row, its list of Tiles.
        max_new_tokens: at most so many.
        stop_ids: ids after which a row is finished.
        sampling: Sampling.
        session: a Session that holds the beginning of every row, or None.

    Yields:
        list of B: the new token id of each row, None for rows that are finished. A stop
        token is yielded; it is the row's last.
    """
    if max_new_tokens < 1:
        return
    longest = max(map(len, rows)) + max_new_tokens
    session = session or Session(model, len(rows), longest)
    session.cache.reserve(longest)
    sampler = Sampler(sampling, model.device)
    tokens = sampler(session.extend(rows, images))  # [B]
    running = [True] * len(rows)
    for left in reversed(range(max_new_tokens)):
        ids = tokens.tolist()  # the loop's one wait for the device
        yield [id if on else None for id, on in zip(ids, running)]
        running = [on and id not in stop_ids for id, on in zip(ids, running)]
        if not left or not any(running):
            return
        tokens = sampler(session.step(tokens))
