# Generated from notebooks/18_hearing.ipynb: edit there, or here and run `make update`.
"""What is said to the model: words, distortions, and clips kept as the encoder's states.

Built in chapter 18, notebooks/18_hearing.ipynb. The encoder is frozen, so that a clip goes
through it once, however often it is learned from.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from mllama_lite.errors import InputError
from mllama_lite.files import (
    ANY_TEXT,
    check_fields,
    damaged_file,
    make_folder,
    parse_json,
    read_bytes,
    system_errors,
    write_json,
    written_aside,
)
from mllama_lite.hearing.mel import log_mel
from mllama_lite.hearing.sound import RATE, cut, resample
from mllama_lite.hearing.whisper_encoder import WhisperEncoder


SECONDS = 2.0  # of a clip, with the silence around it
NOTHING = "nothing"  # what is answered where nothing is said
WORDS = {
    "digit": "zero one two three four five six seven eight nine".split(),
    "letter": list("abcdefghijklmnopqrstuvwxyz"),
    "phonetic": (
        "alpha bravo charlie delta echo foxtrot golf hotel india juliet kilo lima mike "
        "november oscar papa quebec romeo sierra tango uniform victor whiskey x-ray "
        "yankee zulu"
    ).split(),
    "number": (
        "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen "
        "twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million "
        "billion"
    ).split(),
    "date": (
        "monday tuesday wednesday thursday friday saturday sunday january february march "
        "april may june july august september october november december today tomorrow "
        "yesterday"
    ).split(),
}


@dataclass(frozen=True)
class Clip:
    """What is known of a clip.

    Attributes:
        text: what is said, in small letters; NOTHING for noise alone.
        kind: one of WORDS, "word" for any other, or "noise".
        source: the voice, or the name of a recording.
    """

    text: str
    kind: str
    source: str


def distorted(samples: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """A clip as a room, a telephone and a microphone would leave it, somewhere in SECONDS.

    Args:
        samples: fp32 [N], RATE a second, shorter than SECONDS.
        generator: decides everything.

    Returns:
        fp32 [SECONDS · RATE].
    """
    size = round(SECONDS * RATE)
    # Played faster or slower, a voice is higher or lower, and its throat shorter or longer.
    faster = int(generator.integers(88, 113)) / 100
    played = resample(samples, round(RATE * faster))[:size]
    if generator.random() < 0.3:  # echoes that fade
        length = int(generator.uniform(0.03, 0.2) * RATE)
        echo = generator.normal(size=length) * np.exp(-6 * np.arange(length) / length)
        echo[0] = 4 * np.abs(echo).max()
        room = torch.from_numpy(echo / np.linalg.norm(echo)).float()
        whole = len(played) + length
        waves = torch.fft.rfft(played, whole) * torch.fft.rfft(room, whole)
        played = torch.fft.irfft(waves, whole)[:size]
    placed = torch.zeros(size)
    start = int(generator.integers(size - len(played) + 1))
    placed[start : start + len(played)] = played
    strength = 10 ** (-generator.uniform(5, 40) / 20) * samples.square().mean().sqrt()
    placed += strength * hiss(size, generator)
    if generator.random() < 0.5:  # a telephone has 8,000 samples a second
        placed = resample(resample(placed, RATE, RATE // 2), RATE // 2)
    loudest = placed.abs().max().clamp(min=1e-6)
    return placed / loudest * 10 ** generator.uniform(-1, 0)


def hiss(size: int, generator: np.random.Generator) -> torch.Tensor:
    """Noise of strength 1 whose high pitches are as loud as the low ones, or fainter."""
    waves = np.fft.rfft(generator.normal(size=size))
    waves *= np.maximum(np.arange(len(waves)), 20) ** -generator.uniform(0, 1)
    noise = torch.from_numpy(np.fft.irfft(waves, size)).float()
    return noise / noise.square().mean().sqrt()


@torch.no_grad()
def encode(
    encoder: WhisperEncoder, samples: torch.Tensor, seconds: float = SECONDS
) -> torch.Tensor:
    """Sound to the encoder's states, 50 a second.

    Args:
        encoder: WhisperEncoder.
        samples: fp32 [N], RATE a second, at most so many seconds.

    Returns:
        fp32 [S, D].
    """
    mel = log_mel(cut(samples, seconds), encoder.config.num_mel_bins)
    device = encoder.layer_norm.weight.device
    return encoder(mel[None].to(device))[0]


class Clips:
    """Clips as the encoder's states, in a folder.

    Args:
        folder: that `write_clips` wrote.

    Attributes:
        clips: list of Clip.
        states: fp16 [n, S, D], which stay on disk until they are read.
        checksum: of both.

    Raises:
        InputError: a file is missing or damaged.
    """

    def __init__(self, folder: str | PathLike) -> None:
        path = Path(folder) / "clips.json"
        document = parse_json(read_bytes(path, 2**26), path)
        entries = document.get("clips")
        if not isinstance(entries, list) or not isinstance(
            document.get("checksum"), str
        ):
            raise damaged_file(path, "it has no clips, or no checksum")
        fields = dict.fromkeys(("text", "kind", "source"), ANY_TEXT)
        self.clips = [Clip(**check_fields(entry, fields, path)) for entry in entries]
        self.checksum: str = document["checksum"]
        path = Path(folder) / "states.npy"
        with system_errors(path, "read"):
            try:
                self.states = np.load(path, mmap_mode="r", allow_pickle=False)
            except ValueError as error:
                raise damaged_file(path, error) from None
        if self.states.dtype != np.float16 or self.states.shape[:1] != (
            len(self.clips),
        ):
            raise damaged_file(
                path, f"it has {self.states.shape} for {len(self.clips)}"
            )

    def __len__(self) -> int:
        return len(self.clips)

    def take(self, numbers: list[int]) -> torch.Tensor:
        """The states of some clips, fp32 [n, S, D]."""
        return torch.from_numpy(self.states[numbers].astype(np.float32))


def write_clips(
    folder: str | PathLike,
    encoder: WhisperEncoder,
    heard: Iterable[tuple[torch.Tensor, Clip]],
    count: int,
) -> Clips:
    """Encode clips into a folder.

    Args:
        folder: path; made if it is not there.
        encoder: WhisperEncoder.
        heard: pairs of samples, of at most SECONDS, and what is known of them.
        count: how many pairs there are.

    Returns:
        Clips.
    """
    folder = make_folder(Path(folder))
    size = (count, round(50 * SECONDS), encoder.config.d_model)
    known, digest = [], hashlib.sha256()
    with written_aside(folder / "states.npy") as part:
        states = np.lib.format.open_memmap(part, "w+", np.float16, size)
        for number, (samples, clip) in enumerate(heard):
            states[number] = encode(encoder, samples).half().cpu().numpy()
            digest.update(states[number].tobytes())
            known.append(asdict(clip))
        states.flush()
        del states
    if len(known) != count:
        raise InputError(
            f"There are {len(known)} clips: expected {count}, as was said; count them."
        )
    digest.update(json.dumps(known).encode())
    write_json({"checksum": digest.hexdigest(), "clips": known}, folder / "clips.json")
    return Clips(folder)
