# Generated from notebooks/17_prepended.ipynb: edit there, or here and run `make update`.
"""Images as tokens: what an encoder sees stands in the text, where an image token stood.

Built in chapter 17, notebooks/17_prepended.ipynb, from the decoder of chapter 4, which
stays as it is. LLaVA, PaliGemma, Idefics3 and SmolVLM are of this kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mllama_lite.attention import KVCache
from mllama_lite.decoder import LanguageModel, TextConfig
from mllama_lite.errors import InputError
from mllama_lite.generation import Session
from mllama_lite.tiles import Tiles


@dataclass(frozen=True)
class PrependedConfig:
    """What a model with images in its text is made of.

    Attributes:
        text: TextConfig, without cross-attention layers.
        vision: of its encoder; `image_size` and `max_num_tiles` say how images are cut.
        image_token_index: the id of an image.
        tokens_per_tile: m, how many tokens one tile becomes.
        prefix: the tokens of the prompt, images included, see each other in both
            directions, as in PaliGemma; false: every token sees what is before it.
        eos_token_ids: ids that end an answer when there is no tokenizer to say so.
    """

    text: TextConfig
    vision: Any
    image_token_index: int
    tokens_per_tile: int
    prefix: bool = False
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.text.cross_attention_layers:
            raise InputError(
                "The decoder has cross-attention layers "
                f"{list(self.text.cross_attention_layers)}: expected none, its images "
                "are tokens; give a configuration without."
            )


def with_slots(
    tokens: Sequence[int], image_id: int, counts: Sequence[int]
) -> list[int]:
    """A text in which every image token stands as often as its image has tokens.

    Args:
        tokens: list of ids.
        image_id: the image token.
        counts: for each image token in turn, how often.

    Returns:
        list of ids.

    Raises:
        InputError: more or fewer image tokens than counts.
    """
    found = sum(token == image_id for token in tokens)
    if found != len(counts):
        raise InputError(
            f"There are {found} image tokens and {len(counts)} images: expected one "
            "token for each image; add or remove some."
        )
    each, result = iter(counts), []
    for token in tokens:
        result += [token] * (next(each) if token == image_id else 1)
    return result


def put_images(
    embeddings: torch.Tensor, places: torch.Tensor, images: torch.Tensor
) -> torch.Tensor:
    """Embeddings in which some rows are those of images.

    Args:
        embeddings: [B, T, D].
        places: bool [B, T], True where a token of an image stands.
        images: [n, D], in the order of the places, row by row.

    Returns:
        [B, T, D].

    Raises:
        ValueError: another number of places than n.
    """
    if places.sum() != len(images):
        raise ValueError(f"{int(places.sum())} places for {len(images)} image tokens")
    return embeddings.masked_scatter(places[:, :, None], images.to(embeddings.dtype))


def prefix_mask(
    positions: torch.Tensor, num_keys: int, prefix: torch.Tensor
) -> torch.Tensor:
    """Which token sees which, where the first of each row see each other.

    Args:
        positions: int [B, T], of the queries.
        num_keys: S; key j is at position j.
        prefix: int [B], how many tokens of a row see each other.

    Returns:
        bool [B, 1, T, S], True where the query attends: to all before it and itself,
        and within the prefix to all of it.
    """
    keys = torch.arange(num_keys, device=positions.device)
    causal = keys <= positions[:, :, None]  # [B, T, S]
    inside = positions < prefix[:, None]  # [B, T]
    both = inside[:, :, None] & (keys < prefix[:, None, None])
    return (causal | both)[:, None]


class Prepended(nn.Module):
    """An encoder, a projector, and a plain decoder that reads what they make.

    Args:
        config: PrependedConfig.
        vision_tower: pixels of tiles [n, 3, S, S] to patches [n, P, D of the encoder].
        multi_modal_projector: patches to [n, m, D].
        language_model: LanguageModel; None for a new one of the configuration's sizes.
    """

    def __init__(
        self,
        config: PrependedConfig,
        vision_tower: nn.Module,
        multi_modal_projector: nn.Module,
        language_model: LanguageModel | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.vision_tower = vision_tower
        self.multi_modal_projector = multi_modal_projector
        self.language_model = language_model or LanguageModel(config.text)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of what runs through the layers: that of the last norm."""
        return self.language_model.model.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        """device of the parameters."""
        return self.language_model.model.norm.weight.device

    def encode_images(self, images: Sequence[Tiles]) -> list[torch.Tensor]:
        """Images to tokens, each tile by itself.

        Args:
            images: list of N Tiles.

        Returns:
            list of N tensors [valid tiles · m, D].
        """
        counts = [image.num_tiles for image in images]
        pixels = torch.cat([image.pixel_values[: image.num_tiles] for image in images])
        patches = self.vision_tower(pixels.to(self.device, self.dtype))
        tokens = self.multi_modal_projector(patches)  # [all tiles, m, D]
        return [part.flatten(0, 1) for part in tokens.split(counts)]

    def forward(
        self,
        tokens: torch.Tensor,
        cache: KVCache | None = None,
        positions: torch.Tensor | None = None,
        mask: torch.Tensor | None = None,
        vision: torch.Tensor | None = None,
        logits_at: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Logits of the next token.

        Args:
            tokens: int [B, T], image tokens as often as `with_slots` makes them stand.
            vision: [n, D], the tokens of all images of all rows in order; None if no
                image token is in `tokens`.
            cache, positions, mask, logits_at: see `LanguageModel.forward`. None is
                causal, also where the configuration has a prefix: for that give
                `prefix_mask`.

        Returns:
            fp32 [B, T, W], or [B, 1, W] with `logits_at`.
        """
        places = tokens == self.config.image_token_index  # [B, T]
        embed = self.language_model.model.embed_tokens
        if vision is None:
            embeddings = embed(tokens)  # [B, T, D]
        else:
            embeddings = put_images(
                embed(tokens.masked_fill(places, 0)), places, vision
            )
        return self.language_model(
            None, cache, positions, mask, None, logits_at, embeddings
        )


class PrependedSession(Session):
    """Sequences in progress whose images stand among their tokens.

    `VLM(model, tokenizer, session=PrependedSession)` asks, streams and talks with such a
    model as with the book's own. Where the configuration has a prefix, it is what a row
    begins with; what is added later is causal.

    Args:
        model: Prepended.
        batch, capacity, static: see `Session`.
    """

    model: Any

    def __init__(
        self, model: Any, batch: int, capacity: int, static: bool = False
    ) -> None:
        super().__init__(model, batch, capacity, static)
        self._more = [0] * batch  # slots that a row has beyond its tokens

    def extend(
        self, rows: Sequence[list[int]], images: Sequence[list[Tiles]]
    ) -> torch.Tensor:
        """Take in more of every row and return the logits that follow; see `Session`."""
        config, device, starts = self.model.config, self.model.device, self.lengths
        new = [row[n - m :] for row, n, m in zip(rows, starts, self._more)]
        fresh = [row[n:] for row, n in zip(images, self.num_images)]
        if not all(new):
            raise ValueError("every row needs at least one new token")
        pictures = [one for row in fresh for one in row]
        encoded = self.model.encode_images(pictures) if pictures else []
        each = iter([len(one) for one in encoded])
        slots = [
            with_slots(row, config.image_token_index, [next(each) for _ in mine])
            for row, mine in zip(new, fresh)
        ]
        sizes = torch.tensor([len(row) for row in slots])  # [B]
        length = int(sizes.max())
        tokens = torch.zeros(len(rows), length, dtype=torch.long)  # [B, T]
        for i, row in enumerate(slots):
            tokens[i, : len(row)] = torch.tensor(row)
        self.cache.reserve(self.cache.length + length)
        # The prompt reads what is in use; steps of a static session read the whole cache.
        static, self.cache.window = self.cache.window is not None, None
        positions, mask = self._positions(torch.tensor(starts), length), None
        if config.prefix and not any(starts):  # the prompt, and no later turn
            here = torch.arange(length).expand(len(rows), -1)
            mask = prefix_mask(here, length, sizes).to(device)
        vision = torch.cat(encoded) if encoded else None
        logits = self.model(
            tokens.to(device),
            self.cache,
            positions,
            mask,
            vision,
            (sizes - 1).to(device),
        )
        self._more = [m + len(s) - len(t) for m, s, t in zip(self._more, slots, new)]
        self.num_images = [n + len(row) for n, row in zip(self.num_images, fresh)]
        self.lengths = [n + len(row) for n, row in zip(starts, slots)]
        self.cache.length = max(self.lengths)
        self.cache.window = self.cache.capacity if static else None
        self._next = torch.tensor(self.lengths, device=device)  # [B]
        return logits[:, 0]
