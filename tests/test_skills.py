"""The emoji, and what benchmarks/skills.py learns from them."""

import json
from pathlib import Path

import pytest
import torch

import emoji
import skills
from mllama_lite import load
from mllama_lite.adapters.data import read_samples
from mllama_lite.adapters.lora import lora_layers
from mllama_lite.adapters.peft_files import load_adapter

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _gradients():
    with torch.enable_grad():
        yield


def test_every_designer_has_drawn_every_name():
    assert len(emoji.NAMES) == 70 and len(emoji.SHORT) == 38 and len(emoji.LONG) == 32
    different = set()
    for designer in emoji.DESIGNERS:
        for name, drawing in emoji.drawings(designer).items():
            assert drawing.size == (112, 112), name
            opaque = drawing.getchannel("A").point(lambda value: value > 128)
            assert opaque.getbbox() is not None, name  # something is there
            different.add(drawing.tobytes())
    assert len(different) == 4 * 70


def test_a_data_folder_holds_what_it_says_and_is_the_same_each_time(tmp_path):
    vlm = load(device="cpu")
    for name in ("a", "b"):
        emoji.write_data(tmp_path / name, emoji.DESIGNERS[:2], 2, ["egg", "taco"])
    samples, _ = read_samples(tmp_path / "a", vlm.tokenizer, vlm.config)
    pictures = [sample.images[0] for sample in samples]
    assert len(samples) == len({path.read_bytes() for path in pictures}) == 8
    for path in pictures:
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    words = [[label for label in sample.labels if label >= 0] for sample in samples]
    texts = [vlm.tokenizer.decode(ids, skip_special=True) for ids in words]
    assert texts == ["egg", "egg", "taco", "taco"] * 2


@pytest.mark.parametrize("share", [1 / 4, 1 / 2])
def test_old_questions_are_a_share_and_answered_as_before(tmp_path, share):
    emoji.write_data(tmp_path, emoji.DESIGNERS[:2], 3, ["egg", "taco"])
    skills.add_old(tmp_path, share)
    vlm = load(dtype="float32", device="cpu")
    samples, _ = read_samples(tmp_path, vlm.tokenizer, vlm.config)
    text = (tmp_path / "metadata.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    old = [line for line in lines if line["question"] != emoji.QUESTION]
    assert len(samples) == len(lines) and len(old) == share * len(lines)
    for line in old:
        assert vlm.ask(line["question"], tmp_path / line["file_name"]) == line["answer"]


@pytest.mark.parametrize("name", ["full", skills.SHOWN])
def test_a_line_says_what_was_trained(name, tmp_path):
    setting = next(one for one in skills.SETTINGS if one.name == name)
    designer, adapter = emoji.DESIGNERS[2], tmp_path / "adapter"
    line = skills.learn(
        setting,
        8e-3,
        designer,
        ["egg", "taco"],
        2,
        old=1,
        out=setting.targets and adapter,
    )
    assert line["asked"] == 2 and line["before"] == 0 and line["old_asked"] == 11
    vlm = load(dtype="float32", device="cpu")
    whole = sum(p.numel() for p in vlm.model.parameters())
    if name == "full":
        assert line["parameters"] == whole
    else:
        assert 0.035 * whole < line["parameters"] < 0.05 * whole
        load_adapter(vlm.model, adapter)
        ranks = {
            layer.adapters["default"].rank for layer in lora_layers(vlm.model).values()
        }
        assert ranks == {2, 64}
    out = tmp_path / "skills.json"
    for kind in ("tune", "train"):
        skills.add_line(out, kind, line)
        assert skills.lines(out, kind) == [json.loads(json.dumps(line))]
    assert (
        skills.best_rate(setting, [line, line | {"rate": 1, "held_out_loss": 0}]) == 1
    )


def test_no_learning_rate_is_made_up():
    with pytest.raises(SystemExit, match="has no learning rate"):
        skills.best_rate(skills.SETTINGS[0], [])


def test_the_record_is_complete_and_its_adapter_is_that_of_its_line():
    """The chapter reads it; a line for each part, with equally many parameters."""
    rows = json.loads(skills.OUT.read_text())["train"]
    parts = [row for row in rows if row["setting"] in ("self", "cross", "vision")]
    shown = [row for row in rows if row["setting"] == skills.SHOWN]
    assert {row["held_out"] for row in shown} == set(emoji.DESIGNERS)
    for row in parts:
        assert abs(row["parameters"] / shown[0]["parameters"] - 1) < 0.03
    keys = [(row["setting"], row["rate"], row["held_out"]) for row in rows]
    assert len(keys) == len(set(keys))
    vlm = load(dtype="float32", device="cpu")
    load_adapter(vlm.model, skills.ADAPTER)
    size = sum(
        p.numel()
        for layer in lora_layers(vlm.model).values()
        for p in layer.adapters.parameters()
    )
    assert size == shown[0]["parameters"]
