"""A frozen encoder beside a language model: features once, a projector that learns to read."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file

from mllama_lite.alignment.captions import PLACE, Record, read_captions
from mllama_lite.alignment.examples import (
    IMAGE,
    KINDS,
    encode_record,
    make_batch,
    question_tokens,
    questions,
    without_images,
)
from mllama_lite.alignment.features import Features, encode, load_encoder
from mllama_lite.alignment.measuring import (
    answered,
    measure,
    ranks,
    retrieval,
    wrong_pictures,
)
from mllama_lite.alignment.speakers import Speaker, load_speaker, new_projector
from mllama_lite.alignment.training import (
    AlignmentTrainer,
    AlignPlan,
    align,
    instruct,
)
from mllama_lite.cli import main
from mllama_lite.decoder import LanguageModel, TextConfig
from mllama_lite.errors import InputError
from mllama_lite.families.llama4 import Llama4
from mllama_lite.families.projectors import MLPProjector, PoolingProjector
from mllama_lite.families.vit import ViT, ViTConfig
from mllama_lite.pretraining.training import first_values, small_text_config
from mllama_lite.pretraining.writing import save_text_model
from mllama_lite.tokenizer import Tokenizer, write_tokenizer_model

COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 190, 40),
    "blue": (40, 60, 220),
    "black": (0, 0, 0),
    "yellow": (240, 220, 20),
    "pink": (250, 150, 200),
}
VIT = ViTConfig(32, 8, 3, 24, 1, 2, 48)
PLAN = AlignPlan(steps=150, batch=4, rate=3e-3, warmup=10)


@pytest.fixture(autouse=True)
def with_gradients():
    with torch.enable_grad():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Squares of six colours, four of each, and an encoder with random numbers."""
    folder = tmp_path_factory.mktemp("pictures")
    draw, lines = np.random.default_rng(0), []
    for name, colour in COLOURS.items():
        for number in range(4):
            pixels = np.full((20, 24, 3), 255)
            pixels[2:18, 2:22] = np.clip(
                colour + draw.normal(0, 9, (16, 20, 3)), 0, 255
            )
            file = f"{name}{number}.png"
            Image.fromarray(pixels.astype(np.uint8)).save(folder / file)
            line = {"file": file, "caption": f"{name} paper", "concept": name}
            lines.append(
                json.dumps(line | {"split": "seen" if number == 3 else "train"})
            )
    (folder / "captions.jsonl").write_text("\n".join(lines))
    torch.manual_seed(0)
    with torch.no_grad():
        save_file(ViT(VIT).state_dict(), folder / "encoder.safetensors")
    return folder


@pytest.fixture(scope="module")
def records(folder):
    return read_captions(folder / "captions.jsonl")


@pytest.fixture(scope="module")
def features(folder, records):
    encoder = load_encoder(folder / "encoder.safetensors")
    return encode([r.images[0] for r in records], encoder, folder / "features", batch=7)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer({bytes([i]): i for i in range(256)})


def new_speaker(features, tokenizer, model=None, projector=None):
    if model is None:
        rows = max(tokenizer.special.values()) + 1
        size = dict(hidden_size=32, num_hidden_layers=2, intermediate_size_mlp=48)
        heads = dict(num_attention_heads=2, num_key_value_heads=1, head_dim=16)
        model = Llama4(replace(small_text_config(rows, "dense"), **size, **heads))
        first_values(model, 0)
    torch.manual_seed(0)
    projector = projector or PoolingProjector(24, 32, 4)
    return Speaker(model, projector, features, tokenizer)


def largest(a, b):
    assert a.shape == b.shape
    return (a.double() - b.double()).abs().max().item()


@torch.no_grad()
def test_features_are_what_the_encoder_sees(folder, features, records):
    encoder = load_encoder(folder / "encoder.safetensors")
    path = records[5].images[0]
    pixels = encoder.pixels(Image.open(path))
    assert pixels.shape == (3, 32, 32) and pixels[:, 0, 0].eq(1).all()  # white above
    wanted = encoder.module.patches(pixels[None])
    assert features.numbers.shape == (24, 16, 24) and features.size == 24
    assert largest(features.of([path]), wanted) < 2e-3 * wanted.abs().max()


def test_features_go_on_after_a_stop_and_know_their_pictures(folder, records, tmp_path):
    encoder = load_encoder(folder / "encoder.safetensors")
    paths = [r.images[0] for r in records]
    whole = encode(paths, encoder, tmp_path / "whole", batch=5)

    def stop(done, of):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(paths, encoder, tmp_path / "cut", batch=5, progress=stop)
    with pytest.raises(InputError, match="not all of them"):
        Features(tmp_path / "cut")
    seen = []
    cut = encode(
        paths, encoder, tmp_path / "cut", 5, progress=lambda *n: seen.append(n[0])
    )
    assert seen == [15, 20, 24]
    assert np.array_equal(cut.numbers, whole.numbers) and cut.checksum == whole.checksum
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in paths:
        (moved / path.name).write_bytes(path.read_bytes())
    again = [moved / path.name for path in paths]
    encode(again, encoder, tmp_path / "cut", 5, progress=lambda *n: seen.append(n[0]))
    assert seen == [15, 20, 24]  # the same pictures elsewhere
    Image.new("RGB", (9, 9)).save(again[3])
    other = encode(
        again, encoder, tmp_path / "cut", 24, progress=lambda *n: seen.append(9)
    )
    assert seen[3:] == [9] and other.checksum != whole.checksum


def test_where_a_picture_stands(tokenizer):
    end = tokenizer.special["<|end_of_text|>"]
    caption = Record("x", (), ({"role": "user", "content": PLACE}, said("cat")))
    example = encode_record(caption, tokenizer)
    assert example.tokens == [end, IMAGE, *b"cat"]
    assert example.labels == [-100, *b"cat", end]
    asked = Record("x", (), ({"role": "user", "content": f"{PLACE}\nWhy?"}, said("no")))
    example = encode_record(asked, tokenizer)
    text = list(b"\nQuestion: Why?\nAnswer:")
    assert example.tokens == [end, IMAGE, *text, *b" no"]
    assert example.labels == [-100] * (1 + len(text)) + [*b" no", end]
    assert question_tokens(f"Is {PLACE} as {PLACE}?", tokenizer) == [
        *b"\nQuestion: Is",
        IMAGE,
        *b" as",
        IMAGE,
        *b"?\nAnswer:",
    ]
    with pytest.raises(InputError, match="at most 4"):
        encode_record(caption, tokenizer, 4)


def said(text):
    return {"role": "assistant", "content": text}


@torch.no_grad()
def test_a_batch_by_hand(features, tokenizer):
    embedding = torch.nn.Embedding(600, 3)
    images = torch.randn(3, 2, 3)
    two = Record(
        "x", (), ({"role": "user", "content": f"{PLACE}a{PLACE}"}, said("b")), {}
    )
    one = Record("x", (), ({"role": "user", "content": PLACE}, said("cd")))
    examples = [encode_record(r, tokenizer) for r in (two, one)]
    batch = make_batch(examples, embedding, images)
    end = tokenizer.special["<|end_of_text|>"]
    rows = embedding(torch.tensor([end, *b"cd"]))
    wanted = torch.cat([rows[:1], images[2], rows[1:]])
    assert torch.equal(batch.embeddings[1, :5], wanted)
    assert not batch.embeddings[1, 5:].any()
    assert batch.labels[1].tolist()[:5] == [-100, -100, *b"cd", end]
    assert (batch.labels[1, 5:] == -100).all()
    assert torch.equal(batch.embeddings[0, 1:3], images[0])
    bare = without_images(examples[1])
    assert bare.tokens == [end, *b"cd"] and bare.labels == [*b"cd", end]


@torch.no_grad()
@pytest.mark.parametrize("kind", ["llama4", "llama3"])
def test_the_loss_is_that_of_the_answer_alone(kind, features, tokenizer, records):
    """As the model itself has it, row by row, without padding."""
    model = None
    if kind == "llama3":
        torch.manual_seed(1)
        rows = max(tokenizer.special.values()) + 1
        sizes = (rows, 32, 48, 2, 2, 1, 16)
        model = LanguageModel(
            TextConfig(*sizes, cross_attention_layers=(), num_extra_embeddings=0)
        )
    speaker = new_speaker(features, tokenizer, model)
    some = [records[0], records[9], records[17]]
    examples = [encode_record(r, tokenizer) for r in some]
    images = speaker.see([r.images[0] for r in some])
    losses, counts = speaker.losses(examples, images)
    for i, record in enumerate(some):
        ids = [*tokenizer.encode(record.caption), tokenizer.special["<|end_of_text|>"]]
        embed = speaker.model.model.embed_tokens
        before = embed(torch.tensor([ids[-1]]))
        text = embed(torch.tensor(ids[:-1]))
        hidden = torch.cat([before, images[i], text])[None]
        logits = speaker.model(None, embeddings=hidden)[0, -len(ids) :]
        wanted = F.cross_entropy(logits, torch.tensor(ids), reduction="sum")
        assert abs(losses[i] - wanted) < 1e-4 and counts[i] == len(ids)


class Stopped(Exception):
    pass


def stop_at(step):
    def told(trainer):
        if trainer.step == step:
            raise Stopped

    return told


@pytest.mark.parametrize("learns", ["projector", "lora", "all"])
def test_a_training_that_was_stopped_is_as_one_that_was_not(
    learns, features, tokenizer, records, tmp_path
):
    plan, some = replace(PLAN, learns=learns), [r for r in records if is_in(r, "train")]
    held_out = {"seen": [r for r in records if is_in(r, "seen")]}

    def run(name, progress=None):
        speaker = new_speaker(features, tokenizer)
        align(
            tmp_path / name, speaker, some, plan, held_out, progress, measure_every=50
        )

    run("whole")
    for step in (1, 99, 130):
        with pytest.raises(Stopped):
            run("cut", stop_at(step))
    run("cut")
    files = ["projector.safetensors"] + ["model.safetensors"] * (learns != "projector")
    for file in files:
        whole, cut = (
            load_file(tmp_path / "whole" / file),
            load_file(tmp_path / "cut" / file),
        )
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[name], cut[name]) for name in whole), file
    notes = []
    for name in ("whole", "cut"):
        history = json.loads((tmp_path / name / "history.json").read_text())
        notes.append([note | {"seconds": None} for note in history])
    assert notes[0] == notes[1] and len(notes[0]) == 3
    assert (
        not (tmp_path / "cut" / "model.safetensors").exists() or learns != "projector"
    )


def is_in(record, split):
    return record.about["split"] == split


def test_what_is_frozen_stays_and_what_is_read_gives_the_same(
    features, tokenizer, records, tmp_path
):
    for learns in ("projector", "lora", "all"):
        speaker = new_speaker(features, tokenizer)
        before = {n: t.clone() for n, t in speaker.model.state_dict().items()}
        first = {n: t.clone() for n, t in speaker.projector.state_dict().items()}
        plan = replace(PLAN, steps=3, learns=learns)
        align(tmp_path / learns, speaker, records, plan)
        after = speaker.projector.state_dict()
        assert not any(torch.equal(first[name], after[name]) for name in first)
        again = new_speaker(features, tokenizer)
        load_speaker(tmp_path / learns, again)
        same = [torch.equal(before[n], t) for n, t in again.model.state_dict().items()]
        assert all(same) == (learns == "projector")
        found, wanted = measure(again, records[:6]), measure(speaker, records[:6])
        assert all(abs(found[name] - wanted[name]) < 1e-2 for name in wanted)


def test_colours_of_new_pictures_are_named(features, tokenizer, records, tmp_path):
    """By a language model that was random and learns with its projector."""
    speaker = new_speaker(features, tokenizer)
    first_values(speaker.model, 3)
    train = [r for r in records if is_in(r, "train")]
    seen = [r for r in records if is_in(r, "seen")]
    before = measure(speaker, seen)
    plan = replace(PLAN, steps=300, learns="all")
    align(tmp_path / "out", speaker, train, plan)
    after = measure(speaker, seen)
    assert abs(before["right"] - before["wrong"]) < 0.1
    assert after["right"] < 0.5 * min(after["wrong"], after["none"], before["right"])
    found = retrieval(speaker, seen)
    assert found["by loss"]["first"] == found["by gain"]["first"] == 1.0
    assert [speaker.write(r.images, PLACE) for r in seen] == [r.caption for r in seen]


def test_another_training_is_refused(features, tokenizer, records, tmp_path):
    plan = replace(PLAN, steps=2)
    align(tmp_path / "out", new_speaker(features, tokenizer), records, plan)
    for change in ({"rate": 0.1}, {"seed": 1}):
        with pytest.raises(InputError, match="was begun with"):
            align(
                tmp_path / "out",
                new_speaker(features, tokenizer),
                records,
                replace(plan, **change),
            )
    with pytest.raises(InputError, match="was begun with records"):
        align(tmp_path / "out", new_speaker(features, tokenizer), records[1:], plan)
    other = new_speaker(features, tokenizer)
    first_values(other.model, 5)
    with pytest.raises(InputError, match="was begun with model"):
        align(tmp_path / "out", other, records, plan)


def test_questions_are_true(records):
    made = questions(records, list(COLOURS), 0)
    assert made == questions(records, list(COLOURS), 0)
    assert made != questions(records, list(COLOURS), 1)
    assert len(made) == 4 * len(records)
    assert {r.about["kind"] for r in made} == set(KINDS)
    says = {"yes": 0, "no": 0}
    for record in made:
        name, asked = record.about["concept"], record.messages[0]["content"]
        if record.about["kind"] == "yes or no":
            says[record.caption] += 1
            assert (f" {name}?" in asked) == (record.caption == "yes")
        if record.about["kind"] == "which":
            assert name in asked and record.about["other"] in asked
            assert record.caption == name != record.about["other"]
    assert min(says.values()) >= 5
    with pytest.raises(InputError, match="2 or more"):
        questions(records, ["red"], 0)
    with pytest.raises(InputError, match="has no concept"):
        questions([replace(records[0], about={})], list(COLOURS), 0)


def test_wrong_pictures_show_something_else(records):
    concept = {r.images[0]: r.about["concept"] for r in records}
    for seed in range(5):
        for record, other in zip(records, wrong_pictures(records, seed)):
            assert concept[other] != record.about["concept"]
    with pytest.raises(InputError, match="like all others"):
        wrong_pictures(records[:1], 0)


def test_ranks_by_hand():
    costs = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [1.0, 2.0, 0.5]])
    assert ranks(costs) == {
        "first": pytest.approx(2 / 3),
        "first five": 1.0,
        "rank": pytest.approx(4 / 3),
    }


def test_answers_are_compared_to_the_letter(features, tokenizer, records, monkeypatch):
    speaker = new_speaker(features, tokenizer)
    made = questions(records[:8], list(COLOURS), 0)
    monkeypatch.setattr(Speaker, "write", lambda self, images, asked: "yes")
    found = answered(speaker, made)
    true = [r.caption == "yes" for r in made if r.about["kind"] == "yes or no"]
    assert found == {
        "what": 0.0,
        "yes or no": sum(true) / 8,
        "which": 0.0,
        "describe": 0.0,
    }


def test_what_cannot_be(features, tokenizer, records, tmp_path):
    speaker = new_speaker(features, tokenizer)
    for name, value in (
        ("steps", 0),
        ("rate", 2.0),
        ("learns", "eye"),
        ("decay", -0.5),
    ):
        with pytest.raises(InputError, match=name):
            AlignPlan(**{name: value})
    with pytest.raises(InputError, match="no record"):
        align(tmp_path / "a", speaker, [], PLAN)
    with pytest.raises(InputError, match="multiple of 50"):
        align(tmp_path / "a", speaker, records, PLAN, measure_every=30)
    other = replace(records[0], images=(tmp_path / "x.png",))
    with pytest.raises(InputError, match="has no features"):
        align(tmp_path / "a", speaker, [other], PLAN)
    with pytest.raises(InputError, match="1 places for 0"):
        speaker.write([], PLACE)
    (tmp_path / "bad.pth").write_bytes(b"nothing")
    with pytest.raises(InputError, match="cannot be read"):
        load_encoder(tmp_path / "bad.pth")
    with pytest.raises(InputError, match="holds no features"):
        Features(tmp_path)
    align(tmp_path / "b", speaker, records, replace(PLAN, steps=1))
    wide = new_speaker(features, tokenizer, None, MLPProjector(24, 32))
    with pytest.raises(InputError, match="does not fit"):
        load_speaker(tmp_path / "b", wide)


def test_a_trainer_learns_from_all_of_a_step(features, tokenizer, records):
    trainer = AlignmentTrainer(PLAN, new_speaker(features, tokenizer), records)
    with torch.no_grad():
        from mllama_lite.adapters.data import indices_of_step

        some = [records[n] for n in indices_of_step(0, 4, 24, 0)]
        examples = [encode_record(r, tokenizer) for r in some]
        images = trainer.speaker.see([r.images[0] for r in some])
        losses, counts = trainer.speaker.losses(examples, images)
    loss = trainer.train_step()
    assert abs(loss - losses.sum() / counts.sum()) < 2e-2  # bf16 where it is fast


@torch.no_grad()
def test_projectors_by_name():
    patches = torch.ones(1, 16, 24)
    first, again, other = (
        new_projector("pooled", 24, 32, n)(patches) for n in (0, 0, 1)
    )
    assert first.shape == (1, 9, 32) and torch.equal(first, again)
    assert not torch.equal(first, other)
    assert new_projector("patches", 24, 32, 0)(patches).shape == (1, 16, 32)
    with pytest.raises(InputError, match="expected one of pooled"):
        new_projector("round", 24, 32, 0)


def test_instructing_asks_and_keeps_conversations(
    features, tokenizer, records, tmp_path
):
    told = Record(
        "t",
        records[0].images,
        ({"role": "user", "content": f"{PLACE}Hm?"}, said("red")),
    )
    plan = replace(PLAN, steps=1, learns="lora")
    speaker = new_speaker(features, tokenizer)
    trainer = instruct(tmp_path / "out", speaker, [told, *records], plan)
    assert len(trainer.examples) == 1 + 4 * len(records)
    assert trainer.examples[0] == encode_record(told, tokenizer)


def test_the_commands(folder, records, tokenizer, tmp_path, capsys):
    """align and instruct, each stopped by nothing and called twice."""
    text = tmp_path / "text"
    speaker = new_speaker(None, tokenizer)
    (text / "model").mkdir(parents=True)
    save_text_model(speaker.model, text / "model")
    write_tokenizer_model({bytes([i]): i for i in range(256)}, text / "tokenizer.model")
    captions = str(folder / "captions.jsonl")
    given = ["--text", str(text), "--encoder", str(folder / "encoder.safetensors")]
    given += ["--steps", "2", "--batch", "2", "--device", "cpu"]
    out, asked = str(tmp_path / "out"), str(tmp_path / "asked")
    for _ in range(2):
        assert main(["align", captions, "--out", out, *given]) == 0, capsys.readouterr()
    given += ["--start", out, "--features", str(tmp_path / "out" / "features")]
    assert main(["instruct", captions, "--out", asked, *given]) == 0
    assert (tmp_path / "asked" / "model" / "model.safetensors").is_file()
    assert "18 records to learn from" in capsys.readouterr().err
    for wrong in (
        ["align"],
        ["align", captions],
        ["instruct", captions, "--out", asked],
    ):
        assert main(wrong) == 2
    assert main(["instruct", captions, "--out", asked, *given[:-4]]) == 2
    assert "There is no --start" in capsys.readouterr().err
