"""A language model that hears: both ways beside transformers, its training, its folder, asking."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import reference_hearing
from mllama_lite.attention import KVCache
from mllama_lite.checkpoints.hub import find_folder, find_tokenizer
from mllama_lite.cli import main
from mllama_lite.errors import InputError
from mllama_lite.hearing.asking import (
    QUESTIONS,
    Hearing,
    answers,
    is_hearing,
    load_hearing,
    prompt,
    save_hearing,
)
from mllama_lite.hearing.clips import (
    NOTHING,
    SECONDS,
    WORDS,
    Clip,
    Clips,
    distorted,
    encode,
    hiss,
    write_clips,
)
from mllama_lite.hearing.model import Heard, HearingModel, write
from mllama_lite.hearing.sound import RATE
from mllama_lite.hearing.training import (
    HearingPlan,
    HearingTrainer,
    answer,
    answer_loss,
    first_values,
    sample,
    small_hearing_config,
    train_hearing,
)
from mllama_lite.hearing.whisper_encoder import WhisperConfig, WhisperEncoder
from mllama_lite.tokenizer import AudioPart, ImagePart
from mllama_lite.vlm import load

SEEDS = range(16)
PLAN = HearingPlan(steps=130, batch=4, warmup=10, deaf=0.2, kind=0.3)
TINY = WhisperConfig(
    d_model=16, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=32
)


def largest(a, b):
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


@pytest.fixture(scope="module")
def tokenizer():
    return find_tokenizer(find_folder(None))


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return WhisperEncoder(TINY).requires_grad_(False).eval()


@pytest.fixture(scope="module")
def clips(tmp_path_factory, encoder):
    """Beeps: the pitch is the word."""
    time = torch.arange(RATE) / RATE
    heard = []
    for number in range(24):
        word = WORDS["digit"][number % 4]
        tone = (1 + number % 5) / 5 * (2000 * 2 ** (number % 4) * time + number).sin()
        heard.append((tone, Clip(word, "digit", "a beep")))
    folder = tmp_path_factory.mktemp("clips")
    return write_clips(folder, encoder, heard, len(heard))


def small(way, tokenizer):
    config = small_hearing_config(tokenizer.vocab_size, way, TINY)
    text = replace(config.text, hidden_size=32, intermediate_size=32, head_dim=8)
    return replace(config, text=text)


def rows_with(mark, generator, count=2, length=6):
    """Random rows of one length; the sound's token at a place of its own in each."""
    rows = torch.randint(mark, (count, length), generator=generator).tolist()
    for row in rows:
        row[int(torch.randint(length - 1, (1,), generator=generator))] = mark
    return rows


def test_sound_among_tokens(proof):
    worst = 0.0
    for seed in SEEDS:
        config = reference_hearing.random_config(seed)
        hub = reference_hearing.voxtral(config, seed)
        encoder, ours = reference_hearing.ours_from_voxtral(hub, config)
        generator = torch.Generator().manual_seed(seed)
        frames = 2 * config.encoder.max_source_positions
        mel = torch.randn(2, config.encoder.num_mel_bins, frames, generator=generator)
        rows = rows_with(config.audio_token_index, generator)
        vectors = config.encoder.max_source_positions // config.stack
        theirs = reference_hearing.voxtral_logits(hub, rows, mel, vectors)
        worst = max(worst, largest(ours(rows, encoder(mel)), theirs))
    proof(
        "Hearing: sound among tokens, logits", "transformers' Voxtral",
        f"{len(SEEDS)} random configurations x 2 sounds", worst, 2e-5,
    )  # fmt: skip


def test_sound_as_keys_and_values(proof):
    worst = 0.0
    for seed in SEEDS:
        config = reference_hearing.random_config(seed, looks=True)
        hub = reference_hearing.looking(config, seed)
        ours = reference_hearing.ours_from_looking(hub, config, seed)
        generator = torch.Generator().manual_seed(seed)
        states = torch.randn(2, 30, config.encoder.d_model, generator=generator)
        tail = torch.randint(config.text.vocab_size, (2, 5), generator=generator)
        rows = [[config.audio_token_index, *row] for row in tail.tolist()]
        sound = ours.multi_modal_projector(states)
        theirs = hub(
            input_ids=torch.tensor(rows),
            cross_attention_states=sound,
            cross_attention_mask=torch.zeros(2, 1, 6, sound.shape[1]),
        ).logits
        worst = max(worst, largest(ours(rows, states), theirs))
    proof(
        "Hearing: sound as keys and values, logits", "transformers' Mllama",
        f"{len(SEEDS)} random configurations x 2 sounds", worst, 2e-5,
    )  # fmt: skip


@pytest.mark.parametrize("looks", [False, True])
def test_a_row_is_the_same_alone_and_beside_others(looks):
    """Rows that hear and rows that do not, of different lengths."""
    for seed in range(6):
        config = reference_hearing.random_config(seed, looks)
        torch.manual_seed(seed)
        model = HearingModel(config)
        first_values(model, seed)
        mark = config.audio_token_index
        rows = [[1, mark, 2, 3], [4, 5], [mark, 6, 7, 8, 9, 10]]
        states = torch.randn(2, 11, config.encoder.d_model)
        together = model(rows, states)
        given = iter(states)
        for row, logits in zip(rows, together):
            own = next(given)[None] if mark in row else None
            alone = model([row], own)[0]
            assert largest(logits[: len(alone)], alone) < 1e-5


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("hears", [False, True])
def test_step_by_step_as_in_one_pass(looks, hears):
    for seed in range(6):
        config = reference_hearing.random_config(seed, looks)
        model = HearingModel(config)
        first_values(model, seed)
        mark = config.audio_token_index
        tokens = torch.randint(
            mark, (2, 8), generator=torch.Generator().manual_seed(seed)
        )
        rows = [[mark, *row] if hears else row for row in tokens.tolist()]
        states = torch.randn(2, 7, config.encoder.d_model) if hears else None
        whole = model(rows, states)
        cache = KVCache(40)
        heard = model.hear([row[:4] for row in rows], states)
        steps = [model.run(heard, cache)[:, -1]]
        for i in range(4, len(rows[0])):
            tokens = torch.tensor([[row[i]] for row in rows])
            steps.append(model.run(Heard(tokens, now=heard.later), cache)[:, -1])
        wanted = whole[:, -len(steps) :]
        assert largest(torch.stack(steps, dim=1), wanted) < 1e-5


def test_sounds_that_do_not_fit_their_rows_are_refused(tokenizer):
    model = HearingModel(small("tokens", tokenizer))
    mark = model.config.audio_token_index
    states = torch.randn(1, 8, 16)
    for rows, given in (
        ([[1, 2]], states),
        ([[1, mark]], None),
        ([[mark, mark]], states),
        ([[mark], [mark]], states),
    ):
        with pytest.raises(InputError, match="sounds for rows"):
            model(rows, given)


def test_what_is_before_the_sound_does_not_hear_it(tokenizer):
    for way in ("tokens", "keys"):
        model = HearingModel(small(way, tokenizer))
        first_values(model, 0)
        row = [3, 4, 5, model.config.audio_token_index, 6]
        a, b = (model([row], torch.randn(1, 8, 16))[0] for _ in range(2))
        assert torch.equal(a[:3], b[:3]) and not torch.equal(a[-1], b[-1])


def test_a_clip_lies_somewhere_in_its_window():
    generator = np.random.default_rng(0)
    lengths, loudest = set(), set()
    for _ in range(20):
        clip = distorted(torch.randn(RATE), generator)
        assert clip.shape == (round(SECONDS * RATE),) and clip.isfinite().all()
        lengths.add(int(clip.abs().argmax()))
        loudest.add(round(clip.abs().max().item(), 3))
    assert len(lengths) > 15 and len(loudest) > 15 and max(loudest) <= 1
    assert hiss(RATE, generator).square().mean().item() == pytest.approx(1)


def test_clips_are_kept_as_they_were_encoded(clips, encoder, tmp_path):
    assert len(clips) == 24 and clips.clips[5] == Clip("one", "digit", "a beep")
    sound = torch.randn(RATE)
    kept = write_clips(tmp_path, encoder, [(sound, Clip("x", "letter", "y"))], 1)
    assert largest(kept.take([0])[0], encode(encoder, sound)) < 2e-2  # 16 bits
    assert kept.checksum != clips.checksum
    np.save(tmp_path / "states.npy", np.zeros((2, 3, 4), np.float16))
    with pytest.raises(InputError, match="for 1"):
        Clips(tmp_path)
    (tmp_path / "states.npy").write_bytes(b"no")
    with pytest.raises(InputError, match="states.npy"):
        Clips(tmp_path)
    (tmp_path / "clips.json").write_text('{"clips": [{"text": 1}], "checksum": ""}')
    with pytest.raises(InputError, match="text"):
        Clips(tmp_path)


def test_samples_ask_what_the_plan_says(tokenizer):
    clip, generator = Clip("seven", "digit", "v"), np.random.default_rng(0)
    plan, counts = HearingPlan(deaf=0.25, kind=0.5), {}
    for _ in range(2000):
        row, count = sample(clip, tokenizer, plan, generator)
        hears = tokenizer.vocab_size in row
        said = tokenizer.decode(row[-count:-1])
        asks_kind = row == [
            *prompt(tokenizer, QUESTIONS["kind"], hears),
            *row[-count:],
        ]
        assert said == (("a number" if asks_kind else "seven") if hears else NOTHING)
        counts[hears, asks_kind] = counts.get((hears, asks_kind), 0) + 1
    assert 0.2 < (counts[False, True] + counts[False, False]) / 2000 < 0.3
    assert 0.45 < (counts[False, True] + counts[True, True]) / 2000 < 0.55


def test_right_answers():
    for kind, wanted in (
        ("digit", "a number"),
        ("number", "a number"),
        ("letter", "a letter"),
        ("date", "a word"),
        ("phonetic", "a word"),
        ("word", "a word"),
    ):
        assert answer(Clip("x", kind, ""), QUESTIONS["kind"]) == wanted
        assert answer(Clip("x", kind, ""), QUESTIONS["words"]) == "x"
    for question in QUESTIONS.values():
        assert answer(Clip(NOTHING, "noise", ""), question) == NOTHING


def test_the_loss_is_of_the_answers_alone(tokenizer):
    """Each token predicted from what is before it, wherever the sound stands."""
    mark = tokenizer.vocab_size
    samples = [([5, mark, 6, 7, 8], 2), ([1, 2, 3], 1)]
    for vectors in (1, 4):
        logits = torch.full((2, 8, mark), -20.0)
        logits[0, 2 + vectors - 1, 7] = logits[0, 3 + vectors - 1, 8] = 20
        logits[1, 1, 3] = 20
        assert answer_loss(logits, samples, vectors, mark) < 1e-6
        logits[1, 1, 3] = -40
        assert answer_loss(logits, samples, vectors, mark) > 1


class Stopped(Exception):
    pass


@pytest.mark.parametrize("way", ["tokens", "keys"])
def test_a_training_that_was_stopped_is_as_one_that_was_not(
    way, clips, tokenizer, tmp_path
):
    config = small(way, tokenizer)

    def stop(trainer):
        if trainer.step == 120:
            raise Stopped

    with torch.enable_grad():
        args = clips, tokenizer, config, PLAN
        whole = train_hearing(tmp_path / "whole", *args)
        with pytest.raises(Stopped):
            train_hearing(tmp_path / "cut", *args, stop)
        again = train_hearing(tmp_path / "cut", *args)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    history = json.loads((tmp_path / "cut" / "history.json").read_text())
    assert [entry["step"] for entry in history] == [50, 100]
    assert history[1]["loss"] < 0.8 * history[0]["loss"]
    with pytest.raises(InputError, match="was begun with kind"):
        train_hearing(tmp_path / "cut", *args[:3], replace(PLAN, kind=0.5))
    with pytest.raises(InputError, match="states of 16"):
        train_hearing(
            tmp_path / "new", clips, tokenizer, small_hearing_config(719, way)
        )


def test_beeps_are_learned(clips, tokenizer):
    """And asked for by the same code that asks of words."""
    model = HearingModel(small("keys", tokenizer))
    first_values(model, 0)
    plan = HearingPlan(steps=250, batch=12, warmup=10, rate=5e-3)
    trainer = HearingTrainer(plan, model, clips, tokenizer)
    with torch.enable_grad():
        for _ in range(plan.steps):
            trainer.train_step()
    said = answers(model, tokenizer, QUESTIONS["words"], clips.take(range(24)), batch=7)
    right = sum(a == clip.text for a, clip in zip(said, clips.clips))
    assert right >= 20, said
    assert answers(model, tokenizer, QUESTIONS["words"], None) == [NOTHING]


@pytest.fixture(params=["tokens", "keys"])
def folder(request, tokenizer, encoder, tmp_path):
    model = HearingModel(small(request.param, tokenizer))
    first_values(model, 1)
    save_hearing(model, tokenizer, tmp_path / "model")
    place = tmp_path / "whisper"
    place.mkdir()
    save_file({f"model.encoder.{n}": t for n, t in encoder.state_dict().items()},
              place / "model.safetensors")  # fmt: skip
    (place / "config.json").write_text(json.dumps(vars(TINY)))
    return tmp_path


def a_wav(path, samples=None):
    from scipy.io import wavfile

    noise = np.random.default_rng(0).integers(-9000, 9000, 8000).astype(np.int16)
    wavfile.write(path, 8000, noise if samples is None else samples)
    return path


def test_a_folder_is_read_as_it_was_written(folder, tokenizer):
    hearing = load_hearing(folder / "model", folder / "whisper")
    stored = load_file(folder / "model" / "model.safetensors")
    for name, tensor in hearing.model.state_dict().items():
        assert torch.equal(tensor, stored[name].float()), name
    assert hearing.tokenizer.encode("What is said?") == tokenizer.encode(
        "What is said?"
    )
    sound = a_wav(folder / "a.wav")
    said = hearing.ask("What is said?", sound, 5)
    row = prompt(tokenizer, "What is said?", True)
    states = hearing.states(sound)[None]
    ids = [
        i for (i,) in write(hearing.model, [row], states, 5, list(tokenizer.stop_ids))
    ]
    assert said == tokenizer.decode(ids, skip_special=True)
    (folder / "whisper").rename(folder / "model" / "encoder")
    assert load_hearing(folder / "model").ask("What is said?", sound, 5) == said


def test_without_its_encoder_a_model_answers_about_states(folder):
    hearing = load_hearing(folder / "model")
    assert isinstance(hearing.ask("What is said?", None, 5), str)
    with pytest.raises(InputError, match="make sounds"):
        hearing.ask("What is said?", a_wav(folder / "a.wav"))


def test_what_cannot_be_asked(folder, tokenizer, encoder):
    hearing = load_hearing(folder / "model", folder / "whisper")
    sound = a_wav(folder / "a.wav")
    for question in ("", "  ", None, 7):
        with pytest.raises(InputError, match="The question is"):
            hearing.ask(question, sound)
    with pytest.raises(InputError, match="left of the model's context"):
        hearing.ask("What is said? " * 80, sound)
    with pytest.raises(InputError, match="3.0 seconds"):
        hearing.ask("What is said?", torch.zeros(3 * RATE))
    with pytest.raises(InputError, match="The encoder is"):
        Hearing(hearing.model, tokenizer, WhisperEncoder(replace(TINY, d_model=32)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "mllama"}, "model_type"),
        ({"stack": 0}, "stack"),
        ({"seconds": "2"}, "seconds"),
        ({"text_config": {}}, "text_config.vocab_size"),
        ({"encoder": None}, "encoder"),
        ({"stack": 8}, "multi_modal_projector.linear_1"),
    ],
)
def test_a_folder_that_is_not_right_is_refused(change, says, folder):
    path = folder / "model" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=says):
        load_hearing(folder / "model")


def test_a_decoder_of_other_sizes_is_refused(folder):
    path = folder / "model" / "config.json"
    document = json.loads(path.read_text())
    for change, says in (
        ({"cross_attention_layers": [7]}, "indices below"),
        ({"num_key_value_heads": 3}, "multiple of 3"),
        ({"hidden_size": 2**20}, "get both files anew"),  # no memory is taken for it
    ):
        wrong = document | {"text_config": document["text_config"] | change}
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=says):
            load_hearing(folder / "model")


def test_the_command_line(folder, capsys):
    sound, model = str(a_wav(folder / "a.wav")), str(folder / "model")
    encoder = ["--encoder", str(folder / "whisper")]
    assert main(["ask", "What is said?", sound, "--model", model, *encoder]) == 0
    said = capsys.readouterr().out
    hearing = load_hearing(model, folder / "whisper")
    assert said == hearing.ask("What is said?", sound, 256) + "\n"
    command = ["ask", "What is said?", sound, "--json", "--model", model, *encoder]
    assert main(command) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sounds"] == [sound] and document["answer"] + "\n" == said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["b.wav"], "hears one sound and sees nothing"),
        (["b.png"], "hears one sound and sees nothing"),
        (["--show", "a.png"], "--show is not for"),
        (["--adapter", "x"], "--adapter is not for"),
    ],
)
def test_what_a_model_that_hears_is_not_given(words, says, folder, capsys):
    sound = str(a_wav(folder / "a.wav"))
    model = ["--model", str(folder / "model")]
    assert main(["ask", "What is said?", sound, *words, *model]) == 2
    assert says in capsys.readouterr().err


def test_a_model_that_does_not_hear_says_so(folder, capsys, monkeypatch):
    sound = str(a_wav(folder / "a.wav"))
    assert not is_hearing(find_folder(None)) and is_hearing(folder / "model")
    vlm = load()
    for given in (sound, AudioPart(sound), [AudioPart(sound)]):
        with pytest.raises(InputError, match="does not hear"):
            vlm.ask("What is said?", given)
    with pytest.raises(InputError, match="does not hear"):
        vlm.tokenizer.encode_chat(
            [{"role": "user", "content": [{"type": "audio", "audio": sound}]}]
        )
    assert main(["ask", "What is said?", sound]) == 2
    assert "does not hear" in capsys.readouterr().err
    assert main(["ask", "What is said?", "--encoder", "x"]) == 2
    assert "--encoder x is for a model that hears" in capsys.readouterr().err
    assert main(["chat", sound]) == 2
    assert "does not hear" in capsys.readouterr().err


def test_a_picture_may_come_as_a_part():
    vlm = load()
    path = find_folder(None) / "pictures"
    picture = sorted(path.glob("*.png"))[0]
    question = "What digit is this?"
    assert vlm.ask(question, ImagePart(picture)) == vlm.ask(question, picture)
