"""A language model in its folder: read again, written on from, made at the command line."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import reference_llama4
from mllama_lite.cli import main
from mllama_lite.errors import InputError
from mllama_lite.families.llama4 import Llama4, Llama4Config
from mllama_lite.generation import Sampling
from mllama_lite.pretraining.corpus import Corpus, prepare, read_documents
from mllama_lite.pretraining.training import first_values
from mllama_lite.pretraining.writing import (
    load_text_model,
    read_text_config,
    save_text_model,
    write,
)
from mllama_lite.rope import RopeScaling
from mllama_lite.tokenizer import read_tokenizer_model

SAMPLE = Path(__file__).resolve().parent.parent / "notebooks" / "text" / "sample.jsonl"


def a_model(seed=2, **changes):
    model = Llama4(replace(reference_llama4.random_config(seed), **changes))
    first_values(model, seed)
    return model.eval()


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_comes_back(tied, tmp_path):
    model = a_model(tie_word_embeddings=tied, rope_scaling=RopeScaling())
    save_text_model(model, tmp_path)
    again = load_text_model(tmp_path)
    assert again.config == model.config
    for (name, mine), theirs in zip(
        again.state_dict().items(), model.state_dict().values()
    ):
        assert torch.equal(mine, theirs.bfloat16().float()), name
    assert (again.lm_head.weight is again.model.embed_tokens.weight) == tied


def test_what_is_written_is_the_likeliest_of_a_whole_pass():
    for seed in range(6):
        model = a_model(seed)
        start = [3, 1, 4]
        ids = list(write(model, start, 20))
        logits = model(torch.tensor([start + ids]))[0]
        best = logits.topk(2).values[2:-1]
        sure = best[:, 0] - best[:, 1] > 1e-4  # else rounding may choose
        same = logits[2:-1].argmax(-1) == torch.tensor(ids)
        assert same[sure].all() and sure.sum() > 15


def test_writing_stops_and_samples():
    model = a_model()
    ids = list(write(model, [1], 20))
    stop = ids[5]
    assert list(write(model, [1], 20, (stop,))) == ids[: ids.index(stop)]
    some = Sampling(temperature=1.0, seed=3)
    first, again = (list(write(model, [1], 20, sampling=some)) for _ in range(2))
    assert first == again != ids
    with pytest.raises(InputError, match="no token to write on from"):
        next(write(model, []))


def test_sizes_from_a_file(tmp_path):
    path = tmp_path / "config.json"
    config = reference_llama4.random_config(1)
    path.write_text(json.dumps(asdict(config)))
    assert read_text_config(path) == config
    path.write_text('{"hidden_size": 64}')
    assert read_text_config(path, 99) == Llama4Config(hidden_size=64, vocab_size=99)
    path.write_text('{"vocab_size": 64}')
    assert read_text_config(path, 99).vocab_size == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no JSON object"),
        ("[]", "is no JSON object"),
        ('{"hidden": 3}', "has 'hidden': 3: expected fields"),
        ('{"hidden_size": "3"}', "has 'hidden_size': '3'"),
        ('{"hidden_size": -3}', "hidden_size is -3"),
        ('{"hidden_size": 192.5}', "has 'hidden_size': 192.5"),
        ('{"rope_scaling": {"factor": "x"}}', "has another rope_scaling"),
        ('{"use_qk_norm": 1}', "has 'use_qk_norm': 1"),
        ('{"hidden_size": true}', "has 'hidden_size': True"),
        ('{"rope_scaling": {"other": 1}}', "has another rope_scaling"),
    ],
)
def test_sizes_that_cannot_be_read(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_text_config(tmp_path / "config.json")


def test_numbers_that_do_not_fit(tmp_path):
    save_text_model(a_model(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 7}))
    with pytest.raises(InputError, match=r"does not fit its config\.json"):
        load_text_model(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot be read"):
        load_text_model(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load_text_model(tmp_path)


def test_a_folder_is_prepared_once(tmp_path):
    tokenizer, corpus = prepare(lambda: read_documents(SAMPLE), tmp_path, 50)
    assert len(corpus.documents["train"]) == 10
    asked = []
    again = prepare(lambda: asked.append(1) or [], tmp_path, 50)
    assert not asked and again[1].checksum == corpus.checksum
    assert len(read_tokenizer_model(tmp_path / "tokenizer.model")) == 256 + 50


SIZES = dict(
    hidden_size=32,
    intermediate_size=32,
    intermediate_size_mlp=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=16,
    rope_scaling=None,
    attention_chunk_size=8,
    no_rope_layer_interval=2,
    num_local_experts=4,
    tie_word_embeddings=True,
)


def test_the_command_makes_a_model_and_goes_on(tmp_path):
    sizes, out = tmp_path / "sizes.json", tmp_path / "out"
    sizes.write_text(json.dumps(SIZES))
    words = ["pretrain", SAMPLE, "--out", out, "--config", sizes, "--merges", "40"]
    words += "--steps 3 --batch 2 --length 20 --balance bias".split()
    command = [sys.executable, "-m", "mllama_lite.cli", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(out / "model") and "3 of 3" in done.stderr
    model = load_text_model(out / "model")
    assert model.config.num_local_experts == 4
    assert Corpus(out / "corpus").tokens["train"].max() < model.config.vocab_size
    before = (out / "model" / "model.safetensors").read_bytes()
    with torch.enable_grad():
        assert main(list(map(str, words))) == 0  # all is there
    assert (out / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([str(SAMPLE)], "There is no --out"),
        (["--out", "new"], "There is no TEXT"),
        (["nowhere.jsonl", "--out", "new"], "nowhere.jsonl cannot be read"),
        ([str(SAMPLE), "--out", "new", "--merges", "0"], "--merges is 0"),
        ([str(SAMPLE), "--out", "new", "--tokens", "-4"], "--tokens is -4"),
        ([str(SAMPLE), "--out", "new", "--steps", "0"], "steps is 0"),
        ([str(SAMPLE), "--out", "new", "--rate", "x"], "--rate is 'x'"),
    ],
)
def test_the_command_says_what_is_missing(
    words, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["pretrain", *words]) == 2
    said = capsys.readouterr().err
    assert message in said.splitlines()[-1]
    assert not list(tmp_path.rglob("*.safetensors"))
