# Generated from notebooks/18_hearing.ipynb: edit there, or here and run `make update`.
"""The log-mel spectrogram: what of a sound Whisper sees.

Built in chapter 18, notebooks/18_hearing.ipynb. Every hundredth of a second, how much of
80 bands of pitch there is.
"""

import math

import torch

from mllama_lite.hearing.sound import RATE


WINDOW = 400  # samples that a frame looks at: 25 ms
HOP = 160  # samples from one frame to the next: 10 ms


def hertz_to_mel(hertz: torch.Tensor) -> torch.Tensor:
    """Slaney's scale: even steps up to 1,000 Hz, equal ratios above."""
    ratios = 15 + 27 * (hertz.clamp(min=1e-9) / 1000).log() / math.log(6.4)
    return torch.where(hertz < 1000, 3 * hertz / 200, ratios)


def mel_to_hertz(mel: torch.Tensor) -> torch.Tensor:
    """The inverse of `hertz_to_mel`."""
    ratios = 1000 * ((mel - 15) / 27 * math.log(6.4)).exp()
    return torch.where(mel < 15, 200 * mel / 3, ratios)


def mel_filters(num_mel_bins: int = 80) -> torch.Tensor:
    """Triangles over the frequencies, each of area 1, evenly spaced in mel.

    Args:
        num_mel_bins: how many bands.

    Returns:
        fp64 [num_mel_bins, WINDOW / 2 + 1].

    Source: Slaney, Auditory Toolbox, 1998.
    """
    top = hertz_to_mel(torch.tensor(RATE / 2, dtype=torch.float64))
    steps = torch.linspace(0, top.item(), num_mel_bins + 2, dtype=torch.float64)
    corners = mel_to_hertz(steps)  # [M + 2], Hz
    pitch = torch.linspace(0, RATE / 2, WINDOW // 2 + 1, dtype=torch.float64)  # [F]
    left, middle, right = corners[:-2, None], corners[1:-1, None], corners[2:, None]
    rising = (pitch - left) / (middle - left)  # [M, F]
    falling = (right - pitch) / (right - middle)  # [M, F]
    return rising.minimum(falling).clamp(min=0) * 2 / (right - left)


def log_mel(samples: torch.Tensor, num_mel_bins: int = 80) -> torch.Tensor:
    """Whisper's log-mel spectrogram.

    Args:
        samples: fp32 [..., N], RATE a second; N is a multiple of HOP, above WINDOW / 2.
        num_mel_bins: how many bands; 128 in the newest Whisper.

    Returns:
        fp32 [..., num_mel_bins, N / HOP]. The loudest value of a sound decides where its
        quiet ends: what is 8 powers of ten below is raised to that.

    Source: Radford et al. 2022; whisper/audio.py, `log_mel_spectrogram`.
    """
    window = torch.hann_window(WINDOW, device=samples.device)
    waves = torch.stft(samples, WINDOW, HOP, window=window, return_complex=True)
    power = waves[..., :-1].abs() ** 2  # [..., F, N / HOP]
    filters = mel_filters(num_mel_bins).to(power)
    log = (filters @ power).clamp(min=1e-10).log10()  # [..., M, N / HOP]
    loudest = log.amax(dim=(-2, -1), keepdim=True)
    return (log.maximum(loudest - 8) + 4) / 4
