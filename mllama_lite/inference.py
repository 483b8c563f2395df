"""Photographs and questions in, words out: caches, sampling, conversations.

Built in chapter 10, notebooks/10_inference.ipynb.
"""

import re
import weakref
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import torch

from mllama_lite.checkpoint import download, load_model, open_checkpoint
from mllama_lite.cross_attention import visible_ranges
from mllama_lite.errors import InputError
from mllama_lite.model import empty_model
from mllama_lite.tiles import image_to_tiles, open_image
from mllama_lite.tokenizer import Tokenizer


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

    def __post_init__(self):
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
            if not (isinstance(value, kind) and fits(value)):
                raise InputError(
                    f"{name} is {value!r}: expected {expected}; change it."
                )


def probabilities(logits, sampling):
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

    def __init__(self, sampling, device):
        self.sampling = sampling
        self.generator = torch.Generator(device)
        if sampling.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(sampling.seed)

    def __call__(self, logits):
        """fp32 [B, W] to int [B]."""
        if self.sampling.temperature == 0:
            return logits.argmax(dim=-1)
        probs = probabilities(logits, self.sampling)
        return torch.multinomial(probs, 1, generator=self.generator)[:, 0]


class Session:
    """Sequences in progress: what a model keeps from one token to the next.

    The cache holds the tokens, the memory the images, and neither is ever computed
    again. Rows may have different lengths; slot j of the cache is position j.

    Args:
        model: Mllama.
        batch: B.
        capacity: tokens a row can have before the cache has to grow.
        static: read the whole cache at every step, so that each has the same shapes.
    """

    def __init__(self, model, batch, capacity, static=False):
        self.model = model
        self.cache = model.language_model.new_cache(batch, capacity)
        self.cache.window = capacity if static else None
        self.memory = None
        self.num_images = [0] * batch
        self.lengths = [0] * batch
        self._later = None  # what every token after the prompt sees

    def extend(self, rows, images):
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
        vision = self.memory and self.memory.context(ranges, starts, length)
        only = torch.tensor([len(row) - 1 for row in new], device=device)
        static, self.cache.window = self.cache.window is not None, None
        positions = self._positions(torch.tensor(starts), length)
        logits = self.model(
            tokens.to(device), self.cache, positions, None, vision, only
        )
        self.lengths = [len(row) for row in rows]
        self.cache.length = max(self.lengths)
        self.cache.window = self.cache.capacity if static else None
        self._later = self.memory and self.memory.context(ranges, self.lengths, 1)
        self._next = torch.tensor(self.lengths, device=device)  # [B]
        return logits[:, 0]

    def step(self, tokens):
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

    def _positions(self, starts, length):
        """Positions of T tokens [B, T]; None where every row is at the same place."""
        if self.cache.window is None and len(set(self.lengths)) == 1:
            return None
        steps = torch.arange(length, device=self.model.device)
        return starts.to(self.model.device)[:, None] + steps

    def _see(self, images):
        """Encode the new images of each row and remember them."""
        if not any(images):
            return
        if self.memory is not None and len(images) > 1:
            raise ValueError("images that come later are for a session of one row")
        new = self.model.see(images)
        self.memory = new if self.memory is None else self.memory.extended(new)
        self.num_images = [n + len(row) for n, row in zip(self.num_images, images)]


@torch.inference_mode()
def generate(
    model,
    rows,
    images,
    max_new_tokens=64,
    stop_ids=(),
    sampling=Sampling(),
    session=None,
):
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


def memory_needs(config, dtype, tokens, images):
    """Bytes that a conversation takes, computed without loading anything.

    Args:
        config: MllamaConfig.
        dtype: torch dtype of the parameters.
        tokens: T, prompt and answer together.
        images: M, each with all its tiles.

    Returns:
        dict: "weights"; "text cache" and "image cache", keys and values; "working", the
        largest set of intermediate results alive at once, while an image is encoded or
        the prompt is taken in (an estimate; the other three are exact).
    """
    text, vision, size = config.text, config.vision, dtype.itemsize
    weights = sum(parameter.numel() for parameter in empty_model(config).parameters())
    a_token = 2 * text.num_key_value_heads * text.head_dim
    needs = {
        "weights": weights * size,
        "text cache": tokens * a_token * len(text.self_attention_layers) * size,
        "image cache": 0,
    }
    # In the MLP: three tensors of its width, four of the model's around it.
    working = tokens * (3 * text.intermediate_size + 4 * text.hidden_size) * size
    if vision and images:
        seen = images * vision.max_num_tiles * vision.num_patches
        needs["image cache"] = seen * a_token * len(text.cross_attention_layers) * size
        kept = 2 + len(vision.intermediate_layers_indices)
        widths = max(2 * vision.intermediate_size, 5 * vision.hidden_size)
        encoding = seen * (kept * vision.hidden_size + widths) * size
        handing = seen * (2 * vision.vision_output_dim + text.hidden_size) * size
        working = max(working, encoding, handing)
    return needs | {"working": working}


class VLM:
    """A model with its tokenizer, for asking about pictures.

    Args:
        model: Mllama.
        tokenizer: Tokenizer, or None: `logits` and `generate` work without, `ask` not.
        report: LoadReport, what loading found.

    Attributes:
        model, tokenizer, report: as given.
        config: MllamaConfig.
    """

    def __init__(self, model, tokenizer=None, report=None):
        self.model, self.tokenizer, self.report = model, tokenizer, report
        self.config = model.config
        if tokenizer and tokenizer.vocab_size != self.config.text.vocab_size:
            raise InputError(
                f"The tokenizer has {tokenizer.vocab_size} tokens: expected "
                f"{self.config.text.vocab_size}, as the model has; use the one that "
                "came with it."
            )

    def ask(self, images, question=None, max_new_tokens=256, **sampling):
        """Ask about one image, several, or none, and wait for the answer.

        Args:
            images: a path, bytes, a PIL image, a list of these, or None. Images are
                shown to the model as a viewer would show them.
            question: text; special tokens spelled in it stay text. With one argument,
                that is the question.
            max_new_tokens: of the answer, at most.
            **sampling: `temperature`, `top_k`, `top_p`, `min_p`, `seed`: see Sampling.

        Returns:
            str.

        Raises:
            InputError: see `open_image`, `Sampling`; an empty question; no tokenizer;
                images for a text-only model; a prompt longer than the context.
        """
        return "".join(self.stream(images, question, max_new_tokens, **sampling))

    def stream(self, images, question=None, max_new_tokens=256, **sampling):
        """As `ask`, but yields the answer in pieces as it is written.

        Everything is checked when this is called, not when the first piece is taken.
        """
        return self.conversation().stream(images, question, max_new_tokens, **sampling)

    def conversation(self, system=None):
        """Begin a conversation of several turns, whose caches are kept.

        Args:
            system: text of a system message, or None. Meta's code takes one together
                with images; the hub's first chat template refused.

        Returns:
            Conversation.
        """
        return Conversation(self, system)

    @torch.inference_mode()
    def logits(self, tokens, images=()):
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
        memory = self.model.see([tiles])
        vision = memory and memory.context(
            [visible_ranges(row, self._image_id)], [0], len(row)
        )
        device_tokens = torch.tensor([row], device=self.model.device)  # [1, T]
        return self.model(device_tokens, vision=vision)[0]

    def generate(self, tokens, images=(), max_new_tokens=64, stop_ids=None, **sampling):
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
        self, rows, images, max_new_tokens=64, stop_ids=None, **sampling
    ):
        """`generate` for several prompts at once: any lengths, with or without images.

        Args:
            rows: list of B lists of token ids.
            images: list of B lists of PIL images.

        Returns:
            list of B lists of new ids.
        """
        settings = _settings(max_new_tokens, sampling, fewest=0)
        rows, tiles = self._prepared(rows, images, max_new_tokens)
        stops = self._stop_ids if stop_ids is None else stop_ids
        results = [[] for _ in rows]
        if not rows:
            return results
        for ids in generate(self.model, rows, tiles, max_new_tokens, stops, settings):
            for result, id in zip(results, ids):
                if id is not None:
                    result.append(id)
        return results

    @property
    def _image_id(self):
        return self.config.image_token_index

    @property
    def _stop_ids(self):
        return self.tokenizer.stop_ids if self.tokenizer else self.config.eos_token_ids

    def _prepared(self, rows, images, max_new_tokens):
        """Check rows of ids and PIL images, and cut the images into tiles."""
        if len(rows) != len(images):
            raise InputError(
                f"There are {len(rows)} rows of tokens and {len(images)} of images: "
                "expected as many; give rows without images an empty list."
            )
        for row in images:
            if not isinstance(row, (list, tuple)):
                raise InputError(
                    f"Images are a {type(row).__name__}: expected a list, one image "
                    "for each image token; put a single one into a list."
                )
        rows = [_as_ids(row) for row in rows]
        for row, row_images in zip(rows, images):
            self._check(row, len(row_images), max_new_tokens)
        return rows, [[self._tiles(image) for image in row] for row in images]

    def _tiles(self, image):
        if not hasattr(image, "convert"):
            raise InputError(
                f"An image is a {type(image).__name__}: expected a PIL image; open it "
                "with mllama_lite.open_image."
            )
        vision = self.config.vision
        return image_to_tiles(image, vision.image_size, vision.max_num_tiles)

    def _check(self, row, num_images, max_new_tokens):
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


def _as_ids(row):
    """A row of token ids as a list of ints."""
    row = row.tolist() if isinstance(row, torch.Tensor) else row
    if not isinstance(row, (list, tuple)) or any(type(id) is not int for id in row):
        raise InputError(
            f"Tokens are {str(row)[:40]!r}: expected a list of whole numbers; encode "
            "text with the tokenizer first."
        )
    return list(row)


def _settings(max_new_tokens, sampling, fewest=1):
    """Sampling from keyword arguments; the length of the answer is checked as well."""
    if type(max_new_tokens) is not int or max_new_tokens < fewest:
        raise InputError(
            f"max_new_tokens is {max_new_tokens!r}: expected a whole number, {fewest} "
            "or more; change it."
        )
    unknown = sampling.keys() - Sampling.__dataclass_fields__.keys()
    if unknown:
        raise InputError(
            f"There is no sampling setting {sorted(unknown)[0]!r}: expected "
            f"{', '.join(Sampling.__dataclass_fields__)}; correct the name."
        )
    return Sampling(**sampling)


class Conversation:
    """Several turns with one model; earlier turns are never computed again.

    Args:
        vlm: VLM with a tokenizer.
        system: text of a system message, or None.

    Attributes:
        tokens: ids of everything said so far, the answers included.

    Raises:
        InputError: the model has no tokenizer.
    """

    def __init__(self, vlm, system=None):
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
        self.tiles = []
        self._session = None
        self._writing = lambda: None  # the answer that is being written, or None

    def ask(self, images, question=None, max_new_tokens=256, **sampling):
        """One turn; see `VLM.ask`."""
        return "".join(self.stream(images, question, max_new_tokens, **sampling))

    def stream(self, images, question=None, max_new_tokens=256, **sampling):
        """One turn, in pieces; see `VLM.stream`.

        The turn begins when the first piece is taken. A later question ends an answer
        that is still being written; what was written of it is kept.
        """
        if question is None and isinstance(images, str):
            images, question = None, images
        if not isinstance(question, str) or not question.strip():
            raise InputError(
                f"The question is {question!r}: expected some text; write what you "
                "want to know."
            )
        if not isinstance(images, (list, tuple)):
            images = [] if images is None else [images]
        settings = _settings(max_new_tokens, sampling)
        if (earlier := self._writing()) is not None:
            earlier.close()
        turn, _ = self.tokenizer.encode_message(
            "user", [*map(_Image, images), question]
        )
        header = self.tokenizer.encode_header("assistant")
        prompt = self.tokens + turn + header
        self.vlm._check(prompt, len(self.tiles) + len(images), max_new_tokens)
        tiles = self.tiles + [self.vlm._tiles(open_image(image)) for image in images]
        answer = self._answer(prompt, tiles, max_new_tokens, settings)
        self._writing = weakref.ref(answer)  # a dropped answer frees its memory at once
        return answer

    def _answer(self, prompt, tiles, max_new_tokens, settings):
        """Stream an answer; what was written is kept, also when it is cut off."""
        model, stops = self.vlm.model, self.tokenizer.stop_ids
        if self._session is None:
            self._session = Session(model, 1, len(prompt) + max_new_tokens)
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
            if self.tokens[-1] not in stops:
                self.tokens.append(self.tokenizer.special["<|eot_id|>"])

    def _written(self, steps):
        for (id,) in steps:
            self.tokens.append(id)
            yield id


class _Image:
    """Stands for an image in a message, so that a path is not read as text."""

    def __init__(self, source):
        self.source = source


def load(model, device=None, dtype=None, progress=None):
    """Load a model by hub id or folder, in the hub's layout or Meta's.

    Args:
        model: "organisation/name", or the path of a folder.
        device: "cpu", "cuda", "cuda:1", …; None for CUDA if there is one.
        dtype: "bfloat16", "float16", "float32" or a torch dtype; None as it is stored.
        progress: see `load_model`.

    Returns:
        VLM. A folder without a tokenizer loads as well.

    Raises:
        InputError: see `download`, `load_model`; a device or dtype that isn't there.
    """
    device, dtype = find_device(device), find_dtype(dtype)
    folder = find_folder(model)
    checkpoint, tokenizer = open_checkpoint(folder), find_tokenizer(folder)
    loaded, report = load_model(checkpoint, device, dtype, progress)
    return VLM(loaded, tokenizer, report)


def find_folder(model):
    """The folder of a model: itself, or where the hub's files were downloaded to."""
    if Path(model).is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)):
        return Path(model)
    return download(str(model))


def find_tokenizer(folder):
    """The Tokenizer of a folder, or None if it has no file of one."""
    for name in ("tokenizer.model", "original/tokenizer.model", "tokenizer.json"):
        if (folder / name).is_file():
            return Tokenizer.from_file(folder / name)
    return None


def find_device(device):
    """torch device from its name; None for CUDA if there is one.

    Raises:
        InputError: there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()  # on the meta device there is no number
    except (RuntimeError, AssertionError, NotImplementedError):
        there = ["cpu"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        raise InputError(
            f"The device {str(device)!r} is not there: expected one of "
            f"{', '.join(there)}; choose another."
        ) from None
    return device


def find_dtype(dtype):
    """torch dtype from its name; None stays None.

    Raises:
        InputError: no floating-point dtype has that name.
    """
    known = {
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
        "float32": torch.float32,
    }
    if dtype is None or dtype in known.values():
        return dtype
    if dtype not in known:
        raise InputError(
            f"The dtype {str(dtype)!r} is not known: expected one of "
            f"{', '.join(known)}; choose another."
        )
    return known[dtype]
