# Generated from notebooks/18_hearing.ipynb: edit there, or here and run `make update`.
"""Asking a model that hears: a question and a WAV file in, words out.

Built in chapter 18, notebooks/18_hearing.ipynb. A model's folder holds projector and
language model; the encoder is in a folder of its own, or in encoder/ below.
"""

from collections.abc import Iterator
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mllama_lite.checkpoints.configs import (
    CONTEXT,
    DEPTH,
    EPSILON,
    HEADS,
    THETA,
    VOCABULARY,
    WIDTH,
)
from mllama_lite.checkpoints.hub import find_tokenizer
from mllama_lite.checkpoints.tensor_files import read_safetensors_header
from mllama_lite.decoder import TextConfig
from mllama_lite.devices import find_device
from mllama_lite.errors import InputError, shown
from mllama_lite.files import (
    ANY_OBJECT,
    check_fields,
    check_relations,
    exists,
    list_of,
    make_folder,
    number,
    one_of,
    read_json,
    whole,
    write_json,
    written_aside,
)
from mllama_lite.generation import Sampling
from mllama_lite.hearing.clips import encode
from mllama_lite.hearing.model import HearingConfig, HearingModel, write
from mllama_lite.hearing.sound import read_sound
from mllama_lite.hearing.whisper_encoder import (
    WHISPER_FIELDS,
    WhisperConfig,
    WhisperEncoder,
    fill,
    load_encoder,
)
from mllama_lite.tokenizer import (
    NUM_SPECIAL_TOKENS,
    AudioPart,
    Tokenizer,
    write_tokenizer_model,
)


MODEL_TYPE = "mllama_lite_hearing"
QUESTIONS = {
    "words": "What is said?",
    "kind": "Is it a letter, a number or a word?",
}
FIELDS = {
    "model_type": one_of(MODEL_TYPE),
    "stack": whole(1, 100),
    "seconds": number(0.1, 30),
    "text_config": ANY_OBJECT,
    "encoder": ANY_OBJECT,
}
TEXT_FIELDS = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": whole(2, 4096),
    "rms_norm_eps": EPSILON,
    "rope_theta": THETA,
    "max_position_embeddings": CONTEXT,
    "num_extra_embeddings": whole(1, 8),
    "cross_attention_layers": list_of(whole(0, 511), most=512),
}


def prompt(tokenizer: Tokenizer, question: str, hears: bool) -> list[int]:
    """The tokens up to where the answer begins.

    Args:
        tokenizer: Tokenizer.
        question: text.
        hears: whether a sound comes before it, as `tokenizer.vocab_size`.
    """
    content = [AudioPart(), question] if hears else question
    message, _ = tokenizer.encode_message("user", content, tokenizer.vocab_size)
    return [tokenizer.bos_id, *message, *tokenizer.encode_header("assistant")]


def answers(
    model: HearingModel,
    tokenizer: Tokenizer,
    question: str,
    states: torch.Tensor | None,
    max_new_tokens: int = 12,
    batch: int = 64,
) -> list[str]:
    """One question about many sounds, greedily.

    Args:
        model: HearingModel.
        tokenizer: Tokenizer.
        question: text.
        states: [n, S, D_e], the encoder's; None to ask once without a sound.
        max_new_tokens: of each answer, at most.
        batch: sounds that are answered at once.

    Returns:
        list of n texts.
    """
    row, results = prompt(tokenizer, question, states is not None), []
    stops = list(tokenizer.stop_ids)
    for part in [None] if states is None else states.split(batch):
        count = 1 if part is None else len(part)
        written: list[list[int]] = [[] for _ in range(count)]
        for ids in write(model, [row] * count, part, max_new_tokens, stops):
            for text, id in zip(written, ids):
                if id is not None:
                    text.append(id)
        results += [tokenizer.decode(ids, skip_special=True) for ids in written]
    return results


class Hearing:
    """A model that hears with its tokenizer and its encoder, for asking about sounds.

    Args:
        model: HearingModel.
        tokenizer: Tokenizer.
        encoder: WhisperEncoder, or None: then only states can be asked about.

    Raises:
        InputError: they do not belong together.
    """

    def __init__(
        self,
        model: HearingModel,
        tokenizer: Tokenizer,
        encoder: WhisperEncoder | None = None,
    ) -> None:
        self.model, self.tokenizer, self.encoder = model, tokenizer, encoder
        config = model.config
        if tokenizer.vocab_size != config.text.vocab_size:
            raise InputError(
                f"The tokenizer has {tokenizer.vocab_size} tokens: expected "
                f"{config.text.vocab_size}, as the model has; use the one that came "
                "with it."
            )
        if encoder is not None and encoder.config != config.encoder:
            raise InputError(
                f"The encoder is {shown(encoder.config)}: expected the one of the "
                f"model's training, {shown(config.encoder)}; make sounds fetches it."
            )

    def states(self, sound: str | PathLike | torch.Tensor) -> torch.Tensor:
        """What the encoder makes of a WAV file or of samples at 16,000 a second, [S, D_e].

        Raises:
            InputError: see `read_wav` and `cut`; there is no encoder.
        """
        if self.encoder is None:
            raise InputError(
                "The model's folder has no encoder/: expected the Whisper encoder that "
                "it was trained with; make sounds writes it to sounds/whisper, give that "
                "folder as encoder, or copy it."
            )
        samples = sound if isinstance(sound, torch.Tensor) else read_sound(sound)
        return encode(self.encoder, samples, self.model.config.seconds)

    def ask(
        self,
        question: str,
        sound: str | PathLike | torch.Tensor | None = None,
        max_new_tokens: int = 32,
        **sampling: Any,
    ) -> str:
        """Ask about a sound, or without one, and wait for the answer.

        Args:
            question: text; the model was trained on those in QUESTIONS.
            sound: path of a WAV file, samples fp32 [N] at 16,000 a second, or None.
            max_new_tokens: of the answer, at most, and no more than the context holds.
            **sampling: see Sampling.

        Raises:
            InputError: an empty question, or one that is too long; see `states`.
        """
        return "".join(self.stream(question, sound, max_new_tokens, **sampling))

    def stream(
        self,
        question: str,
        sound: str | PathLike | torch.Tensor | None = None,
        max_new_tokens: int = 32,
        **sampling: Any,
    ) -> Iterator[str]:
        """As `ask`, but yields the answer in pieces; everything is checked at once."""
        if not isinstance(question, str) or not question.strip():
            raise InputError(
                f"The question is {shown(question)}: expected some text; write what you "
                "want to know."
            )
        settings, config = Sampling(**sampling), self.model.config
        row = prompt(self.tokenizer, question, sound is not None)
        states = None if sound is None else self.states(sound)[None]
        vectors = round(50 * config.seconds / config.stack) if sound is not None else 0
        longest = config.text.max_position_embeddings
        room = longest - len(row) - vectors
        if room < 1:
            raise InputError(
                f"The question has {len(row)} tokens: expected fewer than "
                f"{longest - vectors}, which are left of the model's context; shorten it."
            )
        stops = list(self.tokenizer.stop_ids)
        count = min(max_new_tokens, room)
        steps = write(self.model, [row], states, count, stops, settings)
        return self.tokenizer.stream(ids[0] for ids in steps if ids[0] is not None)


def save_hearing(
    model: HearingModel, tokenizer: Tokenizer, folder: str | PathLike
) -> None:
    """Write a model in bf16, its configuration and its tokenizer into a folder."""
    folder = make_folder(Path(folder))
    state = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
    }
    with written_aside(folder / "model.safetensors") as part:
        save_file(state, part, {"format": "pt"})
    config = model.config
    text = {name: getattr(config.text, name) for name in TEXT_FIELDS}
    document = {
        "model_type": MODEL_TYPE,
        "stack": config.stack,
        "seconds": config.seconds,
        "text_config": text
        | {"cross_attention_layers": [*config.text.cross_attention_layers]},
        "encoder": asdict(config.encoder),
    }
    write_json(document, folder / "config.json")
    plain = range(tokenizer.vocab_size - NUM_SPECIAL_TOKENS)
    ranks = {tokenizer.token_bytes(id): id for id in plain}
    write_tokenizer_model(ranks, folder / "tokenizer.model")


def is_hearing(folder: str | PathLike) -> bool:
    """Whether a folder holds a model that hears."""
    path = Path(folder) / "config.json"
    return exists(path) and read_json(path).get("model_type") == MODEL_TYPE


def load_hearing(
    folder: str | PathLike,
    encoder: str | PathLike | None = None,
    device: str | torch.device | None = None,
) -> Hearing:
    """Load what `save_hearing` wrote, with the encoder if it is there.

    Args:
        folder: path of the model's folder.
        encoder: path of the encoder's folder; None for encoder/ in the model's, which
            need not be there.
        device: see `find_device`.

    Returns:
        Hearing, its numbers in fp32.

    Raises:
        InputError: a file is missing or damaged, or two do not fit together.
    """
    folder = Path(folder)
    path = folder / "config.json"
    given = check_fields(read_json(path), FIELDS, path)
    text = check_fields(given["text_config"], TEXT_FIELDS, path, "text_config.")
    layers, heads = text["cross_attention_layers"], text["num_key_value_heads"]
    check_relations(
        text,
        [
            (
                not layers or max(layers) < text["num_hidden_layers"],
                "cross_attention_layers",
                f"indices below {text['num_hidden_layers']}",
            ),
            (
                text["num_attention_heads"] % heads == 0,
                "num_attention_heads",
                f"a multiple of {heads}",
            ),
        ],
        path,
        "text_config.",
    )
    inner = check_fields(given["encoder"], WHISPER_FIELDS, path, "encoder.")
    config = HearingConfig(
        TextConfig(
            **text | {"cross_attention_layers": tuple(layers)}, rope_scaling=None
        ),
        WhisperConfig(**inner),
        given["stack"],
        given["seconds"],
    )
    with torch.device("meta"):
        model = HearingModel(config)
    weights = folder / "model.safetensors"
    fill(model, read_safetensors_header(weights), weights)
    tokenizer = find_tokenizer(folder)
    if tokenizer is None:
        raise InputError(
            f"{folder} has no tokenizer.model: expected the one that the model was "
            "trained with; get it again."
        )
    own = folder / "encoder"
    place = encoder if encoder is not None else own if exists(own) else None
    found = find_device(device)
    return Hearing(
        model.to(found),
        tokenizer,
        None if place is None else load_encoder(place).to(found),
    )
