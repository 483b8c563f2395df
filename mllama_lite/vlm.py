# Generated from notebooks/10_inference.ipynb: edit there, or here and run `make update`.
"""Photographs and questions in, words out: loading, asking, conversations.

Built in chapter 10, notebooks/10_inference.ipynb.
"""

import weakref
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image

from mllama_lite.checkpoints.hub import find_folder, find_tokenizer
from mllama_lite.checkpoints.loading import (
    Checkpoint,
    LoadReport,
    load_model,
    open_checkpoint,
)
from mllama_lite.devices import find_device, find_dtype
from mllama_lite.errors import InputError, shown
from mllama_lite.generation import Sampling, Session, generate
from mllama_lite.model import Mllama
from mllama_lite.tiles import Tiles, image_to_tiles, is_picture_name, open_image
from mllama_lite.tokenizer import AudioPart, ImagePart, Tokenizer, is_sound_name


Ids = Collection[int] | torch.Tensor  # of tokens
Picture = str | PathLike | bytes | bytearray | BinaryIO | Image.Image | ImagePart


class VLM:
    """A model with its tokenizer, for asking about pictures.

    Args:
        model: Mllama.
        tokenizer: Tokenizer, or None: `logits` and `generate` work without, `ask` not.
        report: LoadReport, what loading found.
        session: called as session(model, batch, capacity) for every Session; another
            one can run the model compiled, or elsewhere.

    Attributes:
        model, tokenizer, report, session: as given.
        config: MllamaConfig.
    """

    def __init__(
        self,
        model: Mllama,
        tokenizer: Tokenizer | None = None,
        report: LoadReport | None = None,
        session: Callable[[Mllama, int, int], Session] = Session,
    ) -> None:
        self.model, self.tokenizer, self.report = model, tokenizer, report
        self.session, self.config = session, model.config
        if tokenizer and tokenizer.vocab_size != self.config.text.vocab_size:
            raise InputError(
                f"The tokenizer has {tokenizer.vocab_size} tokens: expected "
                f"{self.config.text.vocab_size}, as the model has; use the one that "
                "came with it."
            )

    def ask(
        self,
        question: str,
        images: Picture | Sequence[Picture] | None = None,
        max_new_tokens: int = 256,
        **sampling: Any,
    ) -> str:
        """Ask about one image, several, or none, and wait for the answer.

        Args:
            question: text; special tokens spelled in it stay text.
            images: a path, bytes, a PIL image, an ImagePart with one of these, a list of
                them, or None. Images are shown to the model as a viewer would show
                them, before the question. A sound is refused: chapter 18 has models
                that hear.
            max_new_tokens: of the answer, at most.
            **sampling: `temperature`, `top_k`, `top_p`, `min_p`, `seed`: see Sampling.

        Returns:
            str.

        Raises:
            InputError: see `open_image`, `Sampling`; an empty question, or the name of
                a picture in its place; no tokenizer; images for a text-only model; a
                prompt longer than the context; logits that are no numbers.
        """
        return "".join(self.stream(question, images, max_new_tokens, **sampling))

    def stream(
        self,
        question: str,
        images: Picture | Sequence[Picture] | None = None,
        max_new_tokens: int = 256,
        **sampling: Any,
    ) -> Iterator[str]:
        """As `ask`, but yields the answer in pieces as it is written.

        Everything is checked when this is called, not when the first piece is taken.
        """
        return self.conversation().stream(question, images, max_new_tokens, **sampling)

    def conversation(self, system: str | None = None) -> "Conversation":
        """Begin a conversation of several turns, whose caches are kept.

        Args:
            system: text of a system message, or None. Meta's code takes one together
                with images; the hub's first chat template refused.

        Returns:
            Conversation.
        """
        return Conversation(self, system)

    @torch.no_grad()
    def logits(self, tokens: Ids, images: Sequence[Image.Image] = ()) -> torch.Tensor:
        """What the model expects after every token of a given text.

        Args:
            tokens: list of T token ids, images as `config.image_token_index`.
            images: list of PIL images, one for each image token.

        Returns:
            fp32 [T, W] on the model's device: row t is about token t + 1.

        Raises:
            InputError: ids outside the vocabulary; more images than image tokens or the
                reverse; a text longer than the context.
        """
        (row,), (tiles,) = self._prepared([tokens], [images], 0)
        vision = self.model.vision_context([row], [tiles])
        device_tokens = torch.tensor([row], device=self.model.device)  # [1, T]
        return self.model(device_tokens, vision=vision)[0]

    def generate(
        self,
        tokens: Ids,
        images: Sequence[Image.Image] = (),
        max_new_tokens: int = 64,
        stop_ids: Ids | None = None,
        **sampling: Any,
    ) -> list[int]:
        """Token ids in, new token ids out.

        Args:
            tokens, images: see `logits`.
            max_new_tokens: at most so many.
            stop_ids: ids that end the answer; None for the model's own.
            **sampling: see Sampling.

        Returns:
            list of ids, the stop token included if one came.

        Raises:
            InputError: as `logits`, and see Sampling.
        """
        return self.generate_batch(
            [tokens], [images], max_new_tokens, stop_ids, **sampling
        )[0]

    def generate_batch(
        self,
        rows: Sequence[Ids],
        images: Sequence[Sequence[Image.Image]],
        max_new_tokens: int = 64,
        stop_ids: Ids | None = None,
        **sampling: Any,
    ) -> list[list[int]]:
        """`generate` for several prompts at once: any lengths, with or without images.

        Args:
            rows: list of B lists of token ids.
            images: list of B lists of PIL images.

        Returns:
            list of B lists of new ids.
        """
        settings = _settings(max_new_tokens, sampling, fewest=0)
        rows, tiles = self._prepared(rows, images, max_new_tokens)
        stops = self._stop_ids if stop_ids is None else set(_as_ids(stop_ids))
        results: list[list[int]] = [[] for _ in rows]
        if not rows:
            return results
        longest = max(map(len, rows)) + max_new_tokens
        session = self.session(self.model, len(rows), longest)
        for ids in generate(
            self.model, rows, tiles, max_new_tokens, stops, settings, session
        ):
            for result, id in zip(results, ids):
                if id is not None:
                    result.append(id)
        return results

    @property
    def _image_id(self) -> int:
        return self.config.image_token_index

    @property
    def _stop_ids(self) -> Collection[int]:
        return self.tokenizer.stop_ids if self.tokenizer else self.config.eos_token_ids

    def _prepared(
        self,
        rows: Sequence[Ids],
        images: Sequence[Sequence[Image.Image]],
        max_new_tokens: int,
    ) -> tuple[list[list[int]], list[list[Tiles]]]:
        """Check rows of ids and PIL images, and cut the images into tiles."""
        if len(rows) != len(images):
            raise InputError(
                f"There are {len(rows)} rows of tokens and {len(images)} of images: "
                "expected as many; give rows without images an empty list."
            )
        for one in images:
            if not isinstance(one, (list, tuple)):
                raise InputError(
                    f"Images are a {type(one).__name__}: expected a list, one image "
                    "for each image token; put a single one into a list."
                )
        checked = [_as_ids(row) for row in rows]
        for row, row_images in zip(checked, images):
            self._check(row, len(row_images), max_new_tokens)
        return checked, [[self._tiles(image) for image in one] for one in images]

    def _tiles(self, image: Image.Image) -> Tiles:
        if not hasattr(image, "convert"):
            raise InputError(
                f"An image is a {type(image).__name__}: expected a PIL image; open it "
                "with mllama_lite.open_image."
            )
        vision = self.config.vision
        assert vision is not None  # else `_check` refused the image
        return image_to_tiles(image, vision.image_size, vision.max_num_tiles)

    def _check(self, row: list[int], num_images: int, max_new_tokens: int) -> None:
        """Whether a row of ids can be run with so many images."""
        text = self.config.text
        if num_images and self.config.vision is None:
            raise InputError(
                f"There are {num_images} images for a text-only model: expected none; "
                "use a vision model, or ask without images."
            )
        highest = self._image_id if self.config.vision else text.vocab_size - 1
        wrong = [id for id in row if not 0 <= id <= highest]
        if wrong or not row:
            what = f"Token id {wrong[0]}" if wrong else "An empty list of tokens"
            raise InputError(
                f"{what} cannot be run: expected ids from 0 to {highest}; check which "
                "tokenizer made them."
            )
        markers = row.count(self._image_id) if self.config.vision else 0
        if markers != num_images:
            raise InputError(
                f"There are {markers} image tokens and {num_images} images: expected "
                "one token for each image; add or remove some."
            )
        longest = text.max_position_embeddings
        if len(row) + max_new_tokens > longest:
            raise InputError(
                f"The prompt has {len(row)} tokens and may grow by {max_new_tokens}: "
                f"expected at most {longest} in all, the model's context; shorten it."
            )


def _as_ids(row: Ids) -> list[int]:
    """A row of token ids as a list of ints."""
    row = row.tolist() if isinstance(row, torch.Tensor) else row
    row = list(row) if isinstance(row, (tuple, set, frozenset)) else row
    if not isinstance(row, list) or any(type(id) is not int for id in row):
        raise InputError(
            f"Tokens are {shown(row)}: expected a list of whole numbers; encode text "
            "with the tokenizer first."
        )
    return row


def _settings(
    max_new_tokens: int, sampling: dict[str, Any], fewest: int = 1
) -> Sampling:
    """Sampling from keyword arguments; the length of the answer is checked as well."""
    if type(max_new_tokens) is not int or max_new_tokens < fewest:
        raise InputError(
            f"max_new_tokens is {shown(max_new_tokens)}: expected a whole number, {fewest} "
            "or more; change it."
        )
    unknown = sampling.keys() - Sampling.__dataclass_fields__.keys()
    if unknown:
        raise InputError(
            f"There is no sampling setting {sorted(unknown)[0]!r}: expected "
            f"{', '.join(Sampling.__dataclass_fields__)}; correct the name."
        )
    return Sampling(**sampling)


def _check_question(question: str) -> None:
    """Text is asked first; pictures, or the name of one, are not what was meant."""
    example = "ask('What is this?', 'photo.jpg')"
    if not isinstance(question, str):
        raise InputError(
            f"The question is {shown(question)}: expected text first and the pictures "
            f"after it; write {example}."
        )
    if not question.strip():
        raise InputError(
            f"The question is {shown(question)}: expected some text; write what you "
            "want to know."
        )
    if is_picture_name(question):
        raise InputError(
            f"The question is {shown(question)}, the name of a picture: expected text "
            f"first and the pictures after it; write {example}."
        )


def as_part(source: Any) -> ImagePart | AudioPart:
    """What is given beside a question, by its kind: a name that ends in .wav is a sound's."""
    if isinstance(source, (ImagePart, AudioPart)):
        return source
    named = isinstance(source, (str, PathLike)) and is_sound_name(str(source))
    return AudioPart(source) if named else ImagePart(source)


class Conversation:
    """Several turns with one model; earlier turns are never computed again.

    For one thread at a time. Several conversations can share a model.

    Args:
        vlm: VLM with a tokenizer.
        system: text of a system message, or None.

    Attributes:
        tokens: ids of everything said so far, the answers included.

    Raises:
        InputError: the model has no tokenizer.
    """

    def __init__(self, vlm: VLM, system: str | None = None) -> None:
        if vlm.tokenizer is None:
            raise InputError(
                "The model's folder has no tokenizer: expected tokenizer.model or "
                "tokenizer.json for asking in words; add one, or use generate with "
                "token ids."
            )
        self.vlm, self.tokenizer = vlm, vlm.tokenizer
        self.tokens = [self.tokenizer.bos_id]
        if system is not None:
            self.tokens += self.tokenizer.encode_message("system", system)[0]
        self.tiles: list[Tiles] = []
        self._session: Session | None = None
        # The answer that is being written, or None.
        self._writing: Callable[[], Generator | None] = lambda: None

    def ask(
        self,
        question: str,
        images: Picture | Sequence[Picture] | None = None,
        max_new_tokens: int = 256,
        **sampling: Any,
    ) -> str:
        """One turn; see `VLM.ask`."""
        return "".join(self.stream(question, images, max_new_tokens, **sampling))

    def stream(
        self,
        question: str,
        images: Picture | Sequence[Picture] | None = None,
        max_new_tokens: int = 256,
        **sampling: Any,
    ) -> Iterator[str]:
        """One turn, in pieces; see `VLM.stream`.

        The turn begins when the first piece is taken. A later question ends an answer
        that is still being written; what was written of it is kept. A question that is
        refused ends nothing.
        """
        _check_question(question)
        given: list[Any] = [] if images is None else [images]
        if isinstance(images, (list, tuple)):
            given = list(images)
        settings = _settings(max_new_tokens, sampling)
        parts = [as_part(one) for one in given]
        turn, given = self.tokenizer.encode_message("user", [*parts, question])
        header = self.tokenizer.encode_header("assistant")
        earlier = self._writing()
        end = [] if earlier is None else self._end()
        prompt = self.tokens + end + turn + header
        self.vlm._check(prompt, len(self.tiles) + len(given), max_new_tokens)
        tiles = self.tiles + [self.vlm._tiles(open_image(image)) for image in given]
        if earlier is not None:
            earlier.close()
        answer = self._answer(prompt, tiles, max_new_tokens, settings)
        self._writing = weakref.ref(answer)  # a dropped answer frees its memory at once
        return answer

    def _answer(
        self,
        prompt: list[int],
        tiles: list[Tiles],
        max_new_tokens: int,
        settings: Sampling,
    ) -> Generator[str, None, None]:
        """Stream an answer; what was written is kept, also when it is cut off."""
        model, stops = self.vlm.model, self.tokenizer.stop_ids
        if self._session is None:
            self._session = self.vlm.session(model, 1, len(prompt) + max_new_tokens)
        self.tokens, self.tiles = prompt, tiles
        steps = generate(
            model,
            [list(prompt)],
            [tiles],
            max_new_tokens,
            stops,
            settings,
            self._session,
        )
        try:
            yield from self.tokenizer.stream(self._written(steps))
        finally:
            self.tokens += self._end()

    def _end(self) -> list[int]:
        """The token that ends the last turn, in a list that is empty if it has one."""
        ended = self.tokens[-1] in self.tokenizer.stop_ids
        return [] if ended else [self.tokenizer.special["<|eot_id|>"]]

    def _written(self, steps: Iterator[list[int | None]]) -> Iterator[int]:
        for (id,) in steps:
            assert id is not None  # a single row is never finished before the others
            self.tokens.append(id)
            yield id


def load(
    model: str | Path | Checkpoint | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> VLM:
    """Load a model by hub id or folder, in the hub's layout or Meta's.

    Args:
        model: "organisation/name", the path of a folder, or a Checkpoint opened by
            `open_checkpoint`; None for the small trained model that the package ships
            (chapter 11).
        device: "cpu", "cuda", "cuda:1", …; None for CUDA if there is one.
        dtype: "bfloat16", "float16", "float32" or a torch dtype; None as it is stored.
        progress: see `load_model`.

    Returns:
        VLM. A folder without a tokenizer loads as well.

    Raises:
        InputError: see `download`, `load_model`; a device or dtype that isn't there.
    """
    device, dtype = find_device(device), find_dtype(dtype)
    if isinstance(model, Checkpoint):
        checkpoint = model
    else:
        checkpoint = open_checkpoint(find_folder(model))
    tokenizer = find_tokenizer(checkpoint.folder)
    loaded, report = load_model(checkpoint, device, dtype, progress)
    return VLM(loaded, tokenizer, report)
