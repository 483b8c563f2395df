# Generated from notebooks/18_hearing.ipynb: edit there, or here and run `make update`.
"""A language model that hears, in one of two ways.

Built in chapter 18, notebooks/18_hearing.ipynb. A decoder with cross-attention layers looks
at sound as Llama 3.2 Vision looks at pictures; one without takes it among its tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mllama_lite.attention import KVCache
from mllama_lite.cross_attention import (
    CrossAttentionLayer,
    VisionCache,
    VisionContext,
    make_layer,
    visible_ranges,
)
from mllama_lite.decoder import LanguageModel, TextConfig
from mllama_lite.errors import InputError
from mllama_lite.generation import Sampler, Sampling
from mllama_lite.hearing.whisper_encoder import WhisperConfig


@dataclass(frozen=True)
class HearingConfig:
    """Sizes of a language model that hears.

    Attributes:
        text: TextConfig; with cross-attention layers it looks at sound.
        encoder: WhisperConfig of the encoder whose states are heard.
        stack: how many states, 20 ms each, become one vector for the language model.
        seconds: the longest sound.
    """

    text: TextConfig
    encoder: WhisperConfig = WhisperConfig()
    stack: int = 4
    seconds: float = 2.0

    @property
    def audio_token_index(self) -> int:
        """The id that stands for a sound: the first beyond the vocabulary."""
        return self.text.vocab_size

    @property
    def looks(self) -> bool:
        """Whether sound is keys and values; otherwise it stands among the tokens."""
        return bool(self.text.cross_attention_layers)


class SoundProjector(nn.Module):
    """Some states side by side become one vector as wide as the language model.

    Args:
        config: HearingConfig.

    Source: Liu et al. 2025, Voxtral, whose projector this is; Ma et al. 2024.
    """

    def __init__(self, config: HearingConfig) -> None:
        super().__init__()
        self.stack = config.stack
        wide, size = config.stack * config.encoder.d_model, config.text.hidden_size
        self.linear_1 = nn.Linear(wide, size, bias=False)
        self.linear_2 = nn.Linear(size, size, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States [B, S, D_e] to vectors [B, V, D]; V is S / stack, rounded up."""
        states = F.pad(states, (0, 0, 0, -states.shape[1] % self.stack))
        stacked = states.unflatten(1, (-1, self.stack)).flatten(2)  # [B, V, stack·D_e]
        return self.linear_2(F.gelu(self.linear_1(stacked)))


@dataclass
class Heard:
    """What of some rows and their sounds enters the decoder.

    Attributes:
        tokens: int [B, T], or None where `embeddings` [B, T, D] stand for them.
        now, later: what these tokens look at, and what any that follow look at; None for
            nothing.
    """

    tokens: torch.Tensor | None
    embeddings: torch.Tensor | None = None
    now: VisionContext | None = None
    later: VisionContext | None = None


class HearingModel(nn.Module):
    """A projector and a language model. The encoder stands before it, and is frozen.

    Args:
        config: HearingConfig.
    """

    def __init__(self, config: HearingConfig) -> None:
        super().__init__()
        self.config = config
        self.multi_modal_projector = SoundProjector(config)
        self.language_model = LanguageModel(config.text, make_layer)

    @property
    def device(self) -> torch.device:
        """device of the parameters."""
        return self.language_model.model.norm.weight.device

    @property
    def cross_attention_layers(self) -> list[CrossAttentionLayer]:
        """The layers that look at sound, in order."""
        layers = self.language_model.model.layers
        return [layer for layer in layers if isinstance(layer, CrossAttentionLayer)]

    def forward(
        self, rows: Sequence[list[int]], states: torch.Tensor | None
    ) -> torch.Tensor:
        """Logits of the next token, after each token of some rows; see `hear`.

        Returns:
            fp32 [B, T, W]. Where sound stands among the tokens a row is longer by V - 1;
            shorter rows are padded on the right.
        """
        return self.run(self.hear(rows, states))

    def run(self, heard: Heard, cache: KVCache | None = None) -> torch.Tensor:
        """Logits fp32 [B, T, W] of what `hear` gave; a cache keeps it for later tokens."""
        return self.language_model(
            heard.tokens, cache, vision=heard.now, embeddings=heard.embeddings
        )

    def hear(self, rows: Sequence[list[int]], states: torch.Tensor | None) -> Heard:
        """Put sounds to the rows that hear them.

        Args:
            rows: B lists of token ids. A row that hears has `audio_token_index` once.
            states: [N, S, D_e], the encoder's, one for each row that hears, in order.

        Raises:
            InputError: there are not as many sounds as rows that hear.
        """
        marks = [row.count(self.config.audio_token_index) for row in rows]
        number = 0 if states is None else len(states)
        if max(marks) > 1 or sum(marks) != number:
            raise InputError(
                f"There are {number} sounds for rows with {marks} audio tokens: expected "
                "at most one in a row, and a sound for each; add or remove some."
            )
        if states is None:
            return Heard(self._padded(rows))
        sound = self.multi_modal_projector(states.to(self.device))  # [N, V, D]
        return (self._looking if self.config.looks else self._among_tokens)(rows, sound)

    def _among_tokens(self, rows: Sequence[list[int]], sound: torch.Tensor) -> Heard:
        """The sound's vectors enter the first layer in the place of its token."""
        mark = self.config.audio_token_index
        spread = [
            [
                id
                for token in row
                for id in [token] * (sound.shape[1] if token == mark else 1)
            ]
            for row in rows
        ]
        tokens = self._padded(spread)
        embeddings = self.language_model.model.embed_tokens(tokens)  # [B, T, D]
        places = (tokens == mark)[..., None].expand_as(embeddings)
        filled = embeddings.masked_scatter(places, sound.to(embeddings.dtype))
        return Heard(None, filled)

    def _looking(self, rows: Sequence[list[int]], sound: torch.Tensor) -> Heard:
        """The sound's vectors become keys and values, as an image's do."""
        mark, left = self.config.audio_token_index, iter(sound)
        heard = [[next(left)] if mark in row else [] for row in rows]
        cache = VisionCache.from_images(self.cross_attention_layers, heard)
        ranges = [visible_ranges(row, mark) for row in rows]
        tokens = self._padded(rows)
        now = cache.context(ranges, [0] * len(rows), tokens.shape[1])
        later = cache.context(ranges, [len(row) for row in rows], 1)
        return Heard(tokens, None, now, later)

    def _padded(self, rows: Sequence[list[int]]) -> torch.Tensor:
        longest = max(map(len, rows))
        tokens = [row + [0] * (longest - len(row)) for row in rows]
        return torch.tensor(tokens, device=self.device)


@torch.no_grad()
def write(
    model: HearingModel,
    rows: Sequence[list[int]],
    states: torch.Tensor | None,
    max_new_tokens: int,
    stop_ids: Sequence[int],
    sampling: Sampling = Sampling(),
) -> Iterator[list[int | None]]:
    """Write on after several prompts of one length, a token of each at a time.

    Args:
        model: HearingModel.
        rows: B lists of token ids, equally long; all hear, or none.
        states: [B, S, D_e], or None where none hears.
        max_new_tokens: at most so many.
        stop_ids: ids after which a row is finished.
        sampling: Sampling.

    Yields:
        list of B: the new id of each row, None for rows that are finished; a stop token
        is not given.
    """
    sampler, heard = Sampler(sampling, model.device), model.hear(rows, states)
    vectors = 0 if states is None else -(-states.shape[1] // model.config.stack)
    cache = KVCache(len(rows[0]) + vectors + max_new_tokens)
    logits = model.run(heard, cache)[:, -1]
    running = [True] * len(rows)
    for _ in range(max_new_tokens):
        chosen = sampler(logits)  # [B]
        ids = chosen.tolist()
        running = [on and id not in stop_ids for id, on in zip(ids, running)]
        if not any(running):
            return
        yield [id if on else None for id, on in zip(ids, running)]
        following = Heard(chosen[:, None], now=heard.later)
        logits = model.run(following, cache)[:, -1]
