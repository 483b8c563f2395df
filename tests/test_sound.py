"""WAV files, resampling, the log-mel spectrogram and Whisper's encoder, each beside a witness."""

import math
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
import torch

import reference_hearing
from mllama_lite.errors import InputError
from mllama_lite.hearing.mel import log_mel, mel_filters
from mllama_lite.hearing.sound import (
    CROSSINGS,
    RATE,
    cut,
    kernel,
    passed,
    read_sound,
    read_wav,
    resample,
)
from mllama_lite.hearing.whisper_encoder import (
    WhisperConfig,
    WhisperEncoder,
    load_encoder,
)

ROOT = Path(__file__).resolve().parent.parent
SEEDS = range(16)


def largest(a, b):
    a, b = (torch.as_tensor(x) for x in (a, b))
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


def riff(samples, rate=8000, kind=1, bits=16, channels=1, before=b"", extensible=False):
    """A WAV file by hand: samples are bytes as they lie in it."""
    block = channels * bits // 8
    form = struct.pack(
        "<HHIIHH", kind, channels, rate, rate * block % 2**32, block, bits
    )
    if extensible:
        guid = struct.pack("<H", kind) + bytes.fromhex("000000001000800000aa00389b71")
        form = struct.pack("<H", 0xFFFE) + form[2:] + struct.pack("<HHI", 22, bits, 0)
        form += guid
    chunks = before + b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"data" + struct.pack("<I", len(samples)) + samples
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("extensible", [False, True])
def test_whole_numbers_of_every_width(bits, channels, extensible, tmp_path):
    """Against scipy's reader, which keeps the numbers as they lie."""
    from scipy.io import wavfile

    data = np.random.default_rng(bits).bytes(50 * channels * bits // 8)
    path = tmp_path / "a.wav"
    path.write_bytes(riff(data, 11025, 1, bits, channels, extensible=extensible))
    samples, rate = read_wav(path)
    theirs_rate, theirs = wavfile.read(path)
    assert rate == theirs_rate == 11025 and samples.dtype == torch.float32
    theirs = theirs.reshape(50, channels).astype(np.float64)
    theirs = (theirs - 128) / 128 if bits == 8 else theirs / 2.0 ** (min(bits, 16) - 1)
    if bits in (24, 32):  # scipy puts 24 bits at the top of 32
        theirs = theirs * 2.0 ** (15 - 31)
    assert largest(samples, theirs.mean(1).astype(np.float32)) < 1e-6


def test_floats_and_chunks_of_others(tmp_path):
    data = np.linspace(-1, 1, 33, dtype="<f4")
    odd = b"LIST" + struct.pack("<I", 3) + b"abc\0"  # an odd chunk has a byte after it
    path = tmp_path / "a.wav"
    path.write_bytes(riff(data.tobytes(), 16000, 3, 32, before=odd))
    assert largest(read_wav(path)[0], data) == 0


def test_a_file_as_pythons_own_module_writes_it(tmp_path):
    numbers = np.random.default_rng(0).integers(-(2**15), 2**15, 77).astype("<i2")
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes(numbers.tobytes())
    assert largest(read_sound(tmp_path / "a.wav"), numbers / 2.0**15) < 1e-7


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "begins with b''"),
        (b"\xff\xfb\x90\x00" * 20, "expected a WAV file"),
        (b"RIFF\0\0\0\0WAVE", "no fmt or no data"),
        (riff(b"", 8000), "0 samples"),
        (riff(b"ab", 8000, kind=6, bits=8), "of kind 6 with 8 bits"),
        (riff(b"ab" * 4, 8000, bits=12), "12 bits"),
        (riff(b"ab" * 4, 0), "0 samples a second"),
        (riff(b"ab" * 4, 2**31), "samples a second"),
        (riff(b"ab" * 4, channels=0), "0 channels"),
        (riff(struct.pack("<f", math.nan), kind=3, bits=32), "no numbers"),
    ],
)
def test_what_is_no_sound_is_refused(data, says, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(data)
    with pytest.raises(InputError, match=says):
        read_wav(path)


def test_a_recording_that_was_cut_off_is_read(tmp_path):
    whole = riff(bytes(range(200)) * 2)
    path = tmp_path / "a.wav"
    path.write_bytes(whole[:-51])  # the header still promises 400 bytes
    assert len(read_wav(path)[0]) == 174


def test_damaged_files_are_refused_or_read():
    """Nothing but an InputError, whatever bytes a file has."""
    import tempfile

    good, generator = riff(bytes(100)), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.wav"
        for _ in range(400):
            data = bytearray(good)
            for _ in range(generator.integers(1, 6)):
                data[generator.integers(len(data))] = generator.integers(256)
            path.write_bytes(data[: generator.integers(1, len(data) + 1)])
            try:
                assert read_sound(path).isfinite().all()
            except InputError:
                pass


def test_resampling(proof):
    """scipy's filter with the same kernel, on the grid that both rates divide."""
    from scipy.signal import upfirdn

    worst = 0.0
    samples = torch.randn(500, generator=torch.Generator().manual_seed(0))
    for rate, wanted in RATES:
        common = math.gcd(rate, wanted)
        up, down = wanted // common, rate // common
        reach = math.ceil(CROSSINGS / passed(rate, wanted)) * up
        taps = kernel(torch.arange(-reach, reach + 1).double() / up, rate, wanted)
        theirs = upfirdn(taps.numpy(), samples.double().numpy(), up, 1)[reach::down]
        ours = resample(samples, rate, wanted)
        worst = max(worst, largest(ours, theirs[: len(ours)].astype(np.float32)))
    proof("Sound: resampling", "scipy", f"{len(RATES)} pairs of rates", worst, 5e-6)


RATES = (8000, 16000), (16000, 8000), (44100, 16000), (11025, 16000), (16000, 14240)


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000, 383999])
def test_a_tone_stays_the_tone(rate):
    hertz, seconds = 440.0, 0.2
    time = torch.arange(int(rate * seconds)) / rate
    tone = resample((2 * math.pi * hertz * time).sin(), rate)
    wanted = (2 * math.pi * hertz * torch.arange(len(tone)) / RATE).sin()
    middle = slice(400, -400)  # at the ends the sound begins and ends
    assert (tone - wanted)[middle].abs().max() < 2e-3


def test_what_is_too_high_is_gone():
    time = torch.arange(44100) / 44100
    tone = resample((2 * math.pi * 9500 * time).sin(), 44100)
    assert tone[400:-400].abs().max() < 3e-3


def test_a_sound_is_cut_or_refused():
    assert cut(torch.ones(10), 1).shape == (RATE,)
    with pytest.raises(InputError, match="3.0 seconds"):
        cut(torch.ones(3 * RATE), 2)


def test_mel_filters(proof):
    worst = 0.0
    for count in (40, 80, 128):
        theirs = reference_hearing.extractor(count).mel_filters.T
        worst = max(worst, largest(mel_filters(count), theirs))
    proof("Sound: mel filters", "transformers", "40, 80 and 128 bands", worst, 1e-12)


def test_log_mel(proof):
    worst = 0.0
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        seconds = 1 + 1.7 * seed
        samples = torch.randn(int(seconds * RATE), generator=generator)
        samples *= 10.0 ** -(seed % 5)
        if seed % 3 == 0:
            samples = samples.cumsum(0) / 100  # low pitches loud, high ones faint
        bands = (80, 128)[seed % 2]
        theirs = reference_hearing.extractor(bands)(
            samples.numpy(), sampling_rate=RATE, return_tensors="pt"
        ).input_features[0]
        worst = max(worst, largest(log_mel(cut(samples, 30), bands), theirs))
    proof(
        "Sound: log-mel spectrogram", "transformers", f"{len(SEEDS)} sounds", worst, 1e-5
    )  # fmt: skip


def test_log_mel_of_several_sounds_is_that_of_each():
    samples = torch.randn(3, RATE) * torch.tensor([[1.0], [0.01], [1e-4]])
    assert largest(log_mel(samples), torch.stack([log_mel(x) for x in samples])) == 0


def test_the_encoder(proof):
    worst = 0.0
    for seed in SEEDS:
        config = reference_hearing.random_config(seed).encoder
        hub = reference_hearing.whisper(config, seed)
        mel = torch.randn(2, config.num_mel_bins, 2 * config.max_source_positions)
        theirs = hub.encoder(mel).last_hidden_state
        ours = reference_hearing.encoder_of(hub.encoder, config)(mel)
        worst = max(worst, largest(ours, theirs))
    proof(
        "Whisper's encoder: states", "transformers",
        f"{len(SEEDS)} random configurations x 2 sounds", worst, 2e-5,
    )  # fmt: skip


def test_first_positions_are_whispers():
    config = WhisperConfig()
    hub = reference_hearing.whisper(config)
    hub.encoder._init_weights(hub.encoder)
    ours = WhisperEncoder(config).embed_positions.weight
    theirs = hub.encoder.embed_positions.weight
    assert largest(ours, theirs) < 2e-4  # angles up to 1,500 in fp32


def test_a_short_window_is_the_layers_by_hand():
    """transformers insists on 30 seconds; its layers alone take fewer."""
    config = reference_hearing.random_config(3).encoder
    hub = reference_hearing.whisper(config, 3).encoder
    mel = torch.randn(1, config.num_mel_bins, 10)
    x = torch.nn.functional.gelu(hub.conv1(mel))
    x = torch.nn.functional.gelu(hub.conv2(x)).transpose(1, 2)
    x = x + hub.embed_positions.weight[: x.shape[1]]
    for layer in hub.layers:
        x = layer(x, None)
    ours = reference_hearing.encoder_of(hub, config)
    assert largest(ours(mel), hub.layer_norm(x)) < 1e-5
    with pytest.raises(InputError, match="frames"):
        ours(torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions + 2))


def test_an_encoder_is_read_out_of_a_folder_of_the_hub(tmp_path):
    config = reference_hearing.random_config(5).encoder
    hub = reference_hearing.whisper(config, 5)
    hub.save_pretrained(tmp_path)
    ours = load_encoder(tmp_path)
    assert ours.config == config
    for name, tensor in hub.encoder.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name
    assert not any(p.requires_grad for p in ours.parameters())
    text = (tmp_path / "config.json").read_text()
    wrong = f'"d_model": {config.d_model * 2}'
    (tmp_path / "config.json").write_text(
        text.replace(f'"d_model": {config.d_model}', wrong)
    )
    with pytest.raises(InputError, match="does not|as its config.json says"):
        load_encoder(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder(tmp_path / "nowhere")


@pytest.mark.skipif(
    not (ROOT / "sounds" / "whisper").is_dir(), reason="needs make sounds"
)
def test_the_real_weights_beside_transformers():
    from transformers import WhisperForConditionalGeneration

    place = ROOT / "sounds" / "whisper"
    hub = WhisperForConditionalGeneration.from_pretrained(place, dtype=torch.float32)
    samples = read_sound(ROOT / "notebooks" / "sound" / "tt-weasels.wav")
    mel = log_mel(cut(samples, 30))[None]
    theirs = hub.model.encoder(mel).last_hidden_state
    assert largest(load_encoder(place)(mel), theirs) < 1e-4


@pytest.mark.parametrize("rate", [8000, 16000, 22050])
def test_a_recording_is_heard_at_its_own_pitch(rate, tmp_path):
    time = torch.arange(rate) / rate
    whole = (9000 * (2 * math.pi * 1000 * time).sin()).short()
    path = tmp_path / "a.wav"
    path.write_bytes(riff(whole.numpy().tobytes(), rate))
    samples = read_sound(path)
    assert len(samples) == RATE
    assert log_mel(samples).mean(-1).argmax() == mel_filters()[:, 25].argmax()
