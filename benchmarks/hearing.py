"""Train and measure the models of chapter 18: make hearing

Trains a language model that hears in either way, with two seeds, on the clips that `make sounds`
made, into trained/hearing/; each can be stopped and goes on when this is called again. Their
histories go to notebooks/measured/hearing/.

With --measure the models that are there are measured, beside a linear probe on the encoder's
states and Whisper's own decoder, on voices of espeak-ng and a human voice that were never learned
from: notebooks/measured/hearing/measured.json. With --ship the first seed of either way goes to
notebooks/sound/, with some recordings and their states.
"""

import argparse
import json
import re
import shutil
from collections import Counter
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from mllama_lite.checkpoints.hub import find_tokenizer
from mllama_lite.errors import InputError
from mllama_lite.files import written_aside
from mllama_lite.hearing import mel, sound
from mllama_lite.hearing.asking import QUESTIONS, answers, load_hearing
from mllama_lite.hearing.clips import WORDS, Clips
from mllama_lite.hearing.mel import log_mel
from mllama_lite.hearing.sound import cut, read_sound
from mllama_lite.hearing.training import (
    WAYS,
    HearingPlan,
    answer,
    small_hearing_config,
    train_hearing,
)
from mllama_lite.hearing.whisper_encoder import load_encoder

ROOT = Path(__file__).resolve().parent.parent
SOUNDS, FOLDER = ROOT / "sounds", ROOT / "trained" / "hearing"
MEASURED, SHIPPED = (
    ROOT / "notebooks" / "measured" / "hearing",
    ROOT / "notebooks" / "sound",
)
RUNS = {
    f"{way}-{seed}": (way, HearingPlan(seed=seed, steps=2000))
    for seed in (0, 1)
    for way in WAYS
}
SETS = ("recorded", "held_out")  # a human voice; voices of espeak-ng
SHOWN = (
    "digits/7 digits/3 letters/k letters/f phonetic/c_p phonetic/y_p digits/day-3 goodbye"
).split()


def right_by_kind(clips, given):
    """dict from kind, and "all", to [right, total]."""
    counts = {}
    for clip, said in zip(clips, given, strict=True):
        for kind in (clip.kind, "all"):
            entry = counts.setdefault(kind, [0, 0])
            entry[0] += said == clip.text
            entry[1] += 1
    return counts


def measured(hearing, sets):
    """What one model hears: with its own sound, another's, and none."""
    found = {}
    for name, clips in sets.items():
        states = clips.take(range(len(clips)))
        model, tokenizer = hearing.model, hearing.tokenizer
        own = answers(model, tokenizer, QUESTIONS["words"], states)
        half = len(clips) // 2
        # The question is the same for all: another's sound has the other's answer.
        wrong = own[half:] + own[:half]
        (without,) = answers(model, tokenizer, QUESTIONS["words"], None)
        kinds = answers(model, tokenizer, QUESTIONS["kind"], states)
        asked = [answer(clip, QUESTIONS["kind"]) for clip in clips.clips]
        found[name] = {
            "right": right_by_kind(clips.clips, own),
            "wrong sound": right_by_kind(clips.clips, wrong),
            "no sound": right_by_kind(clips.clips, [without] * len(clips)),
            "without a sound": without,
            "kind": [sum(a == b for a, b in zip(kinds, asked)), len(asked)],
            "mistakes": mistakes(clips.clips, own),
        }
    return found


def mistakes(clips, given):
    """[kind, what was said, what was heard] of every wrong answer."""
    pairs = zip(clips, given)
    return [[clip.kind, clip.text, said] for clip, said in pairs if said != clip.text]


def probe(spoken, sets):
    """A linear classifier of whole clips: the mean of the states, a class for each word."""
    classes = [word for words in WORDS.values() for word in words]
    known = [i for i, clip in enumerate(spoken.clips) if clip.kind in WORDS]
    pooled = torch.cat(
        [spoken.take(known[i : i + 500]).mean(1) for i in range(0, len(known), 500)]
    )
    wanted = torch.tensor([classes.index(spoken.clips[i].text) for i in known])
    mean, deviation = pooled.mean(0), pooled.std(0)
    torch.manual_seed(0)
    layer = torch.nn.Linear(pooled.shape[1], len(classes))
    optimiser = torch.optim.AdamW(layer.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(400):
        loss = F.cross_entropy(layer((pooled - mean) / deviation), wanted)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    found = {}
    with torch.no_grad():
        for name, clips in sets.items():
            states = clips.take(range(len(clips))).mean(1)
            chosen = layer((states - mean) / deviation).argmax(-1)
            words = [classes[i] for i in chosen.tolist()]
            found[name] = {
                "right": right_by_kind(clips.clips, words),
                "mistakes": mistakes(clips.clips, words),
            }
    return found


NUMBERS = {str(i): word for i, word in enumerate(WORDS["digit"])}
NUMBERS |= dict(
    zip(map(str, [*range(10, 20), *range(20, 100, 10), 100]), WORDS["number"])
)
SPELLINGS = {
    "alfa": "alpha", "juliett": "juliet", "juliette": "juliet", "whisky": "whiskey",
    "x ray": "x-ray", "xray": "x-ray", "zed": "z",
}  # fmt: skip


def plain(text):
    """What Whisper writes, as the answers are written: small letters, numbers in words."""
    text = once(clean(text))
    return SPELLINGS.get(text, NUMBERS.get(text, text))


def clean(text):
    """Small letters, digits and spaces alone."""
    return re.sub(r"[^a-z0-9' -]", "", text.lower()).strip()


def once(text):
    """A word that is repeated and nothing else, once; any other text as it is."""
    words = text.split()
    return words[0] if len(words) > 1 and len(set(words)) == 1 else text


MOST = 12  # tokens of a word; Whisper may repeat itself for ever


class Decoder:
    """Whisper's own decoder, as transformers has it, greedily."""

    def __init__(self):
        import reference

        reference.import_torchvision()  # before transformers does
        from tokenizers import Tokenizer

        transformers = import_module("transformers")
        place = SOUNDS / "whisper"
        self.model = transformers.WhisperForConditionalGeneration.from_pretrained(
            place, dtype=torch.float32
        ).eval()
        self.tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))

    @torch.no_grad()
    def __call__(self, states, most=40):
        """States [1, S, D] to text. 50257: begin; 50362: no times; 50256: end."""
        new, written, cache = torch.tensor([[50257, 50362]]), [], None
        for number in range(most):
            found = self.model(
                encoder_outputs=(states,), decoder_input_ids=new, past_key_values=cache
            )
            scores, cache = found.logits[0, -1], found.past_key_values
            if number == 0:
                scores[[220, 50256]] = -torch.inf  # it begins with something
            written.append(int(scores.argmax()))
            if written[-1] == 50256:
                break
            new = torch.tensor([written[-1:]])
        return self.tokenizer.decode([id for id in written if id != 50256])


@torch.no_grad()
def whisper(sets):
    """What Whisper's decoder makes of the same states, and of 30 seconds, its own window."""
    decoder, encoder = Decoder(), load_encoder(SOUNDS / "whisper")
    found = {}
    for name, clips in sets.items():
        raw = [decoder(clips.take([i]), MOST).strip() for i in range(len(clips))]
        texts = [plain(text) for text in raw]
        found[name] = {
            "repeats": sum(once(text) != text for text in map(clean, raw)),
            "right": right_by_kind(clips.clips, texts),
            "mistakes": mistakes(clips.clips, texts),
        }
    heard = sets["recorded"].clips
    texts, worst = [], 0.0
    for clip in heard:
        mel = log_mel(cut(read_sound(SOUNDS / "human" / f"{clip.source}.wav"), 30))[
            None
        ]
        states = encoder(mel)
        theirs = decoder.model.model.encoder(mel).last_hidden_state
        worst = max(worst, (states - theirs).abs().max().item())
        texts.append(plain(decoder(states, MOST)))
    found["recorded, 30 seconds"] = {
        "right": right_by_kind(heard, texts),
        "mistakes": mistakes(heard, texts),
    }
    sentences = {}
    for name in ("tt-weasels", "vm-isonphone", "vm-tmpexists", "conf-adminmenu-162"):
        samples = read_sound(SOUNDS / "human" / f"{name}.wav")
        states = encoder(log_mel(cut(samples, 30))[None])
        sentences[name] = [round(len(samples) / 16000, 1), decoder(states).strip()]
    found["sentences"] = sentences
    found["states against transformers"] = worst
    return found


@torch.no_grad()
def with_bugs(hearing):
    """The human voice with a bug between the file and the encoder."""
    from bugs import bug

    clips, encoder = Clips(SOUNDS / "recorded"), load_encoder(SOUNDS / "whisper")
    found = {}
    for name in (None, "natural-logarithm", "rate-ignored", "frames-far-apart"):
        with nullcontext() if name is None else bug(name):
            paths = [SOUNDS / "human" / f"{clip.source}.wav" for clip in clips.clips]
            sounds = torch.stack([cut(sound.read_sound(path), 2) for path in paths])
            states = torch.cat(
                [encoder(mel.log_mel(some)) for some in sounds.split(16)]
            )
            said = answers(hearing.model, hearing.tokenizer, QUESTIONS["words"], states)
        found[name or "none"] = right_by_kind(clips.clips, said)["all"]
    return found


def told_of(clips):
    """How many there are, of which kinds, of how many words and voices."""
    kinds = Counter(clip.kind for clip in clips)
    words = {clip.text for clip in clips}
    voices = {clip.source for clip in clips if "+" in clip.source}
    return {
        "clips": len(clips),
        "kinds": dict(kinds),
        "words": len(words),
        "voices": len(voices),
        "throats": len({voice.split("+")[1] for voice in voices}),
    }


def measure():
    sets = {name: Clips(SOUNDS / name) for name in SETS}
    MEASURED.mkdir(parents=True, exist_ok=True)
    path = MEASURED / "measured.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    found["clips"] = {
        name: told_of(Clips(SOUNDS / name).clips) for name in ("spoken", *SETS)
    }
    if "probe" not in found:
        found["probe"] = probe(Clips(SOUNDS / "spoken"), sets)
        write_found(found)
    if "whisper" not in found:
        found["whisper"] = whisper(sets)
        write_found(found)
    for name in RUNS:
        if (FOLDER / name / "model.safetensors").is_file():
            hearing = load_hearing(FOLDER / name)
            found[name] = measured(hearing, sets)
            if name == "tokens-0":
                found["bugs"] = with_bugs(hearing)
    write_found(found)


def write_found(found):
    with written_aside(MEASURED / "measured.json") as part:
        part.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def ship():
    """Two models, some recordings, and their states, since the encoder is too large."""
    clips = Clips(SOUNDS / "recorded")
    for way in WAYS:
        target = SHIPPED / way
        target.mkdir(parents=True, exist_ok=True)
        for name in ("model.safetensors", "config.json", "tokenizer.model"):
            shutil.copy(FOLDER / f"{way}-0" / name, target)
    sources = [clip.source for clip in clips.clips]
    kept = {}
    for name in SHOWN:
        shutil.copy(
            SOUNDS / "human" / f"{name}.wav", SHIPPED / f"{name.split('/')[-1]}.wav"
        )
        (states,) = clips.take([sources.index(name)])
        kept[name.split("/")[-1]] = states.half().contiguous()
    shutil.copy(SOUNDS / "human" / "tt-weasels.wav", SHIPPED)
    save_file(kept, SHIPPED / "states.safetensors")


def told(trainer):
    if trainer.step % 50 == 0:
        print(trainer.step, f"{trainer.history[-1]['loss']:.3f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RUNS)}; default all")
    parser.add_argument("--measure", action="store_true", help="instead of training")
    parser.add_argument("--ship", action="store_true", help="instead of training")
    args = parser.parse_args()
    if args.measure or args.ship:
        return (measure if args.measure else ship)()
    tokenizer, clips = (
        find_tokenizer(ROOT / "mllama_lite" / "small"),
        Clips(SOUNDS / "spoken"),
    )
    for name in args.names or RUNS:
        way, plan = RUNS[name]
        if (FOLDER / name / "history.json").is_file():
            continue
        print(name, flush=True)
        config = small_hearing_config(tokenizer.vocab_size, way)
        try:
            train_hearing(FOLDER / name, clips, tokenizer, config, plan, told)
        except InputError as error:
            print(error)
            continue
        MEASURED.mkdir(parents=True, exist_ok=True)
        shutil.copy(FOLDER / name / "history.json", MEASURED / f"{name}.json")


if __name__ == "__main__":
    main()
