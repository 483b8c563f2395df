# Generated from notebooks/18_hearing.ipynb: edit there, or here and run `make update`.
"""WAV files to 16,000 numbers a second.

Built in chapter 18, notebooks/18_hearing.ipynb. A WAV file is a row of chunks, each with
a name and a length; two of them matter, what the numbers are like and the numbers.
"""

import math
import struct
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from mllama_lite.errors import InputError, shown
from mllama_lite.files import damaged_file, read_bytes


RATE = 16000  # samples a second, of everything that is heard
MOST_BYTES = 2**26
LOWEST_RATE, HIGHEST_RATE = 1000, 384_000
CROSSINGS = 16  # of the filter that resamples, on either side
PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # kinds of samples, as the format numbers them


def read_wav(path: str | PathLike) -> tuple[torch.Tensor, int]:
    """The samples of a WAV file, from -1 to 1.

    Args:
        path: of a file with whole numbers of 8, 16, 24 or 32 bits, or floats of 32.

    Returns:
        (fp32 [N], samples a second): of several channels the mean.

    Raises:
        InputError: it is no WAV file, is damaged, holds another kind of samples or none,
            or is larger than 64 MiB.
    """
    data, path = read_bytes(Path(path), MOST_BYTES), Path(path)
    if len(data) < 12 or data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise InputError(
            f"{path} begins with {data[:4]!r}: expected a WAV file, which begins with "
            "RIFF; convert it, with ffmpeg for instance."
        )
    found: dict[bytes, bytes] = {}
    place = 12
    while place + 8 <= len(data):
        name, size = (
            data[place : place + 4],
            int.from_bytes(data[place + 4 : place + 8], "little"),
        )
        # A recorder that was cut off leaves a length that is too large, or 0 and more to come.
        found.setdefault(name, data[place + 8 : place + 8 + size])
        place += 8 + size + size % 2
    if len(found.get(b"fmt ", b"")) < 16 or b"data" not in found:
        raise damaged_file(path, "it has no fmt or no data chunk")
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", found[b"fmt "][:16])
    if kind == EXTENSIBLE and len(found[b"fmt "]) >= 26:
        (kind,) = struct.unpack("<H", found[b"fmt "][24:26])
    if (kind, bits) not in [(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOAT, 32)]:
        raise InputError(
            f"{path} has samples of kind {kind} with {bits} bits: expected whole numbers "
            "of 8, 16, 24 or 32 bits, or floats of 32; convert it to 16 bits."
        )
    if not LOWEST_RATE <= rate <= HIGHEST_RATE or not channels:
        raise InputError(
            f"{path} has {rate} samples a second in {channels} channels: expected "
            f"{LOWEST_RATE:,} to {HIGHEST_RATE:,} and at least one; convert it."
        )
    samples = torch.from_numpy(_as_floats(found[b"data"], kind, bits))
    frames = len(samples) // channels
    if not frames or not samples.isfinite().all():
        raise InputError(
            f"{path} has {frames} samples{' that are no numbers' * bool(frames)}: "
            "expected some sound; record it again."
        )
    channel = samples[: frames * channels].view(frames, channels)  # [N, C]
    return channel.mean(dim=1), rate


def _as_floats(data: bytes, kind: int, bits: int) -> np.ndarray:
    """Samples as they lie in a file, to fp32 from -1 to 1."""
    size = bits // 8
    data = data[: len(data) // size * size]
    if kind == FLOAT:
        return np.frombuffer(data, "<f4").astype(np.float32)
    if bits == 8:  # the one width without a sign
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if bits == 24:  # no number type is so wide: a byte of zeros makes it one of 32
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)  # [N, 3]
        data, bits = wide.tobytes(), 32
    whole = np.frombuffer(data, f"<i{bits // 8}")
    return (whole / 2.0 ** (bits - 1)).astype(np.float32)


def resample(samples: torch.Tensor, rate: int, wanted: int = RATE) -> torch.Tensor:
    """The same sound with another number of samples a second.

    What lies between two samples is found with a sinc, cut off by a cosine window; of
    tones that are too high for the lower of the two rates nothing is left.

    Args:
        samples: fp32 [N].
        rate: samples a second.
        wanted: samples a second of the result.

    Returns:
        fp32 [ceil(N · wanted / rate)].

    Source: Smith, Digital Audio Resampling, 2002.
    """
    if rate == wanted:
        return samples
    count = -(-len(samples) * wanted // rate)
    reach = math.ceil(CROSSINGS / passed(rate, wanted))  # in samples of the source
    padded = torch.nn.functional.pad(samples, (reach, reach + 1))
    near = padded.unfold(0, 2 * reach + 1, 1)  # [N + 1, K], what each sample has around
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)  # [K]
    parts = []
    for first in range(0, count, 2**14):
        place = torch.arange(first, min(first + 2**14, count)) * rate
        fraction, which = (place % wanted).unique(return_inverse=True)
        weights = kernel(offsets - fraction[:, None] / wanted, rate, wanted)  # [U, K]
        parts.append((near[place // wanted] * weights.float()[which]).sum(dim=1))
    return torch.cat(parts)


def passed(rate: int, wanted: int) -> float:
    """Which share of the source's pitches is kept: a little less than there is room for."""
    return min(1.0, wanted / rate) * 0.95


def kernel(distance: torch.Tensor, rate: int, wanted: int) -> torch.Tensor:
    """How much a sample counts at a distance, which is in samples of the source."""
    share = passed(rate, wanted)
    inside = (distance * share / CROSSINGS).clamp(-1, 1)
    return share * torch.sinc(distance * share) * (inside * math.pi / 2).cos() ** 2


def read_sound(path: str | PathLike) -> torch.Tensor:
    """A WAV file at 16,000 samples a second, fp32 [N]; see `read_wav`."""
    return resample(*read_wav(path))


def cut(
    samples: torch.Tensor, seconds: float, what: object = "The sound"
) -> torch.Tensor:
    """Sound of at most so many seconds, with silence behind it up to exactly so many.

    Args:
        samples: fp32 [N], RATE a second.
        seconds: of the result.
        what: what to call it in an error.

    Raises:
        InputError: it is longer.
    """
    wanted = round(seconds * RATE)
    if len(samples) > wanted:
        raise InputError(
            f"{shown(what)} has {len(samples) / RATE:.1f} seconds: expected at most "
            f"{seconds:g}; cut it."
        )
    return torch.nn.functional.pad(samples, (0, wanted - len(samples)))
