"""Chapter 18: bugs of the spectrogram, the rate and the stacking, and what notices them."""

import math
import struct
import tempfile
from pathlib import Path

import torch
import torch.nn.functional as F

import reference_hearing
from bugs import a_bug, a_check, replaced
from mllama_lite.hearing import mel, sound
from mllama_lite.hearing.model import SoundProjector
from mllama_lite.hearing.sound import RATE

STACKS = next(s for s in range(9) if reference_hearing.random_config(s).stack == 4)


@a_bug(
    "natural-logarithm",
    "The spectrogram is the natural logarithm of the power, not that to base 10.",
    "tests/test_sound.py::test_log_mel",
)
def natural_logarithm():
    with replaced(mel.log_mel, _log_mel(torch.log)):
        yield


@a_bug(
    "loudest-of-the-batch",
    "The quiet ends 8 powers of ten below the loudest of the whole batch, not of each sound.",
    "tests/test_sound.py::test_log_mel_of_several_sounds_is_that_of_each",
)
def loudest_of_the_batch():
    with replaced(mel.log_mel, _log_mel(torch.log10, together=True)):
        yield


def _log_mel(logarithm, together=False):
    """The spectrogram with another logarithm, or with the loudest of another sound."""

    def wrong(samples, num_mel_bins=80):
        window = torch.hann_window(mel.WINDOW)
        waves = torch.stft(
            samples, mel.WINDOW, mel.HOP, window=window, return_complex=True
        )
        power = waves[..., :-1].abs() ** 2
        log = logarithm((mel.mel_filters(num_mel_bins).to(power) @ power).clamp(1e-10))
        loudest = log.max() if together else log.amax(dim=(-2, -1), keepdim=True)
        return (log.maximum(loudest - 8) + 4) / 4

    return wrong


@a_bug(
    "rate-ignored",
    "The samples of a WAV file are taken as 16,000 a second, whatever its header says.",
    "tests/test_sound.py::test_a_recording_is_heard_at_its_own_pitch",
)
def rate_ignored():
    with replaced(sound.read_sound, lambda path: sound.read_wav(path)[0]):
        yield


@a_bug(
    "frames-far-apart",
    "The frames that become one vector are not neighbours: they come from all over the sound.",
    "tests/test_hearing.py::test_sound_among_tokens",
)
def frames_far_apart():
    def wrong(self, states):
        states = F.pad(states, (0, 0, 0, -states.shape[1] % self.stack))
        apart = states.unflatten(1, (self.stack, -1)).transpose(1, 2).flatten(2)
        return self.linear_2(F.gelu(self.linear_1(apart)))

    with replaced(SoundProjector.forward, wrong):
        yield


def tone(rate, hertz=440, seconds=0.5):
    """What `read_sound` makes of a WAV file with a tone."""
    time = torch.arange(int(rate * seconds)) / rate
    whole = (9000 * (2 * math.pi * hertz * time).sin()).short()
    data = whole.numpy().tobytes()
    form = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    chunks = b"fmt " + struct.pack("<I", 16) + form
    chunks += b"data" + struct.pack("<I", len(data)) + data
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tone.wav"
        path.write_bytes(
            b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks
        )
        return sound.read_sound(path)


def loudest_band(samples):
    """Which band has most of a sound."""
    return int(mel.log_mel(samples[: len(samples) // 160 * 160]).mean(-1).argmax())


def sounds():
    """A loud sound and one a millionth as loud."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, RATE, generator=generator) * torch.tensor([[0.3], [3e-7]])


@a_check("shapes of spectrogram and vectors")
def shapes():
    assert mel.log_mel(sounds()).shape == (2, 80, 100)
    config = reference_hearing.random_config(STACKS)
    states = torch.randn(2, 17, config.encoder.d_model)
    vectors = SoundProjector(config)(states)
    wanted = (2, -(-17 // config.stack), config.text.hidden_size)
    assert vectors.shape == wanted


@a_check("the spectrogram of a sound, and that of transformers")
def one_sound():
    loud = sounds()[0]
    theirs = reference_hearing.extractor()(
        loud.numpy(), sampling_rate=RATE, return_tensors="pt"
    ).input_features[0]
    ours = mel.log_mel(F.pad(loud, (0, 30 * RATE - len(loud))))
    assert (ours - theirs).abs().max() < 5e-5


@a_check("the spectrogram of two sounds at once, and that of each")
def two_sounds():
    alone = torch.stack([mel.log_mel(one) for one in sounds()])
    assert (mel.log_mel(sounds()) - alone).abs().max() < 1e-5


@a_check("a tone in a file of 16,000 samples a second is in its band")
def right_rate():
    assert loudest_band(tone(16000)) == band_of(440)


@a_check("a tone in a file of 8,000 samples a second is in its band")
def other_rate():
    assert loudest_band(tone(8000)) == band_of(440)


def band_of(hertz):
    """The band that hears a tone most: a bin of the transform is 40 Hz."""
    return int(mel.mel_filters()[:, hertz // 40].argmax())


@a_check("logits with sound among the tokens, and those of Voxtral")
@torch.no_grad()
def beside_voxtral():
    config = reference_hearing.random_config(STACKS)
    hub = reference_hearing.voxtral(config)
    encoder, ours = reference_hearing.ours_from_voxtral(hub, config)
    frames = 2 * config.encoder.max_source_positions
    generator = torch.Generator().manual_seed(0)
    spectrogram = torch.randn(
        1, config.encoder.num_mel_bins, frames, generator=generator
    )
    rows = [[1, config.audio_token_index, 2, 3]]
    vectors = config.encoder.max_source_positions // config.stack
    theirs = reference_hearing.voxtral_logits(hub, rows, spectrogram, vectors)
    assert (ours(rows, encoder(spectrogram)) - theirs).abs().max() < 2e-5


@a_check("the loss falls in training")
@torch.enable_grad()
def loss_falls():
    from dataclasses import replace

    from mllama_lite.hearing.model import HearingModel
    from mllama_lite.hearing.training import answer_loss, first_values

    config = reference_hearing.random_config(STACKS)
    config = replace(config, text=replace(config.text, hidden_size=32, head_dim=16))
    model = HearingModel(config)
    first_values(model, 0)
    mark, losses = config.audio_token_index, []
    samples = [([1, mark, 2, 10 + word], 1) for word in range(4)]
    states = torch.randn(
        4, 8, config.encoder.d_model, generator=torch.Generator().manual_seed(0)
    )
    optimiser = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(40):
        logits = model([row for row, _ in samples], states)
        losses.append(answer_loss(logits, samples, -(-8 // config.stack), mark))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.5 * losses[0]
