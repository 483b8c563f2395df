"""Pretraining of a language model: to the bit after a stop, and what it measures."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from mllama_lite.errors import InputError
from mllama_lite.families.llama4 import Llama4
from mllama_lite.pretraining.corpus import Document, pack, read_documents
from mllama_lite.pretraining.training import (
    TextPlan,
    TextTrainer,
    active_parameters,
    first_values,
    held_out_loss,
    mixtures,
    pretrain,
    routed,
    small_text_config,
)
from mllama_lite.pretraining.vocabulary import count_words, learn_merges
from mllama_lite.tokenizer import Tokenizer

SAMPLE = Path(__file__).resolve().parent.parent / "notebooks" / "text" / "sample.jsonl"
PLAN = TextPlan(steps=150, batch=2, length=24, warmup=10)


@pytest.fixture(autouse=True)
def with_gradients():
    with torch.enable_grad():
        yield


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    documents = list(read_documents(SAMPLE))
    ranks = learn_merges(count_words(d.text for d in documents), 60)
    return pack(documents, Tokenizer(ranks), tmp_path_factory.mktemp("corpus"))


def tiny(kind="interleaved", **changes):
    config = small_text_config(600, kind)
    size = dict(
        hidden_size=32,
        intermediate_size=16,
        intermediate_size_mlp=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        attention_chunk_size=config.attention_chunk_size and 8,
    )
    return replace(config, **size | changes)


class Stopped(Exception):
    pass


def stop_at(step):
    def told(trainer):
        if trainer.step == step:
            raise Stopped

    return told


@pytest.mark.parametrize("balance", ["loss", "bias"])
def test_a_training_that_was_stopped_is_as_one_that_was_not(balance, corpus, tmp_path):
    plan, config = replace(PLAN, balance=balance, balance_weight=0.01), tiny()
    whole = pretrain(tmp_path / "whole", corpus, config, plan)
    for step in (1, 99, 130):
        with pytest.raises(Stopped):
            pretrain(tmp_path / "cut", corpus, config, plan, stop_at(step))
    cut = pretrain(tmp_path / "cut", corpus, config, plan)
    for (name, mine), theirs in zip(
        cut.state_dict().items(), whole.state_dict().values()
    ):
        assert torch.equal(mine, theirs), name
    notes = []
    for folder in ("whole", "cut"):
        history = json.loads((tmp_path / folder / "history.json").read_text())
        notes.append([note | {"seconds": None} for note in history])
    assert notes[0] == notes[1] and [note["step"] for note in notes[0]] == [
        50,
        100,
        150,
    ]
    moved = any(moe.choice_bias.any() for moe in mixtures(whole).values())
    assert moved == (balance == "bias")


def test_the_files_of_a_model(corpus, tmp_path):
    plan = replace(PLAN, steps=2)
    model = pretrain(tmp_path / "out", corpus, tiny(), plan)
    state = load_file(tmp_path / "out" / "model.safetensors")
    again = Llama4(tiny())
    missing, other = again.load_state_dict(state, strict=False)
    assert missing == ["lm_head.weight"] and not other  # the head is the embedding
    again.tie_weights()
    tokens = torch.arange(20)[None]
    assert (again(tokens) - model(tokens)).abs().max() < 0.1  # bf16
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_local_experts"] == 8


def test_active_parameters_are_alike_in_all_kinds():
    sizes = {
        kind: active_parameters(Llama4(small_text_config(4608, kind)))
        for kind in ("dense", "experts", "interleaved")
    }
    dense = sizes["dense"]
    assert dense == sum(
        p.numel() for p in Llama4(small_text_config(4608, "dense")).parameters()
    )
    assert all(abs(size / dense - 1) < 0.01 for size in sizes.values()), sizes
    whole = Llama4(small_text_config(4608, "experts"))
    assert sum(p.numel() for p in whole.parameters()) > 1.7 * dense


def test_a_step_learns_from_the_mean_of_all_tokens(corpus):
    model = Llama4(tiny("dense"))
    first_values(model, 0)
    trainer = TextTrainer(replace(PLAN, batch=3), model, corpus)
    from mllama_lite.adapters.data import indices_of_step

    numbers = indices_of_step(0, 3, corpus.num_windows(24), PLAN.seed)
    with torch.no_grad():
        losses = [
            F.cross_entropy(model(row[None, :-1])[0], row[1:])
            for row in corpus.windows(numbers, 24)
        ]
    loss = trainer.train_step()
    assert abs(loss - torch.stack(losses).mean()) < 1e-2 * loss  # bf16 where it is fast
    assert abs(loss - math.log(600)) < 0.5  # of a model that knows nothing


@torch.no_grad()
def test_held_out_documents_are_measured_whole(corpus):
    model = Llama4(tiny("dense"))
    first_values(model, 0)
    found = held_out_loss(model, corpus, 32)
    nats, tokens, size = 0.0, 0, 0.0
    for entry in corpus.documents["held_out"]:
        begin = entry["start"]
        ids = corpus.tokens["held_out"][begin : begin + entry["length"]]
        for piece in torch.from_numpy(ids.astype("int64")).split(32):
            if len(piece) > 1:
                logits = model(piece[None, :-1])[0]
                nats += F.cross_entropy(logits, piece[1:], reduction="sum").item()
                tokens += len(piece) - 1
                size += (len(piece) - 1) * entry["bytes"] / entry["length"]
    assert found["all"]["tokens"] == tokens and set(found) == {"moby", "all"}
    assert found["all"]["loss"] == pytest.approx(nats / tokens, rel=5e-3)
    bits = nats / math.log(2) / size
    assert found["all"]["bits_per_byte"] == pytest.approx(bits, rel=5e-3)


def test_what_routers_choose_is_seen_from_outside_and_only_within(corpus):
    model = Llama4(tiny())
    tokens = torch.arange(24).view(2, 12)
    with routed(model) as seen:
        model(tokens)
    assert list(seen) == list(mixtures(model)) and len(seen) == 2
    for logits, chosen in seen.values():
        assert logits.shape == (24, 8) and chosen.shape == (24, 2)
    kept = dict(seen)
    model(tokens + 1)
    assert all(seen[name] is kept[name] for name in kept)


def test_another_plan_in_the_same_folder_is_refused(corpus, tmp_path):
    with pytest.raises(Stopped):
        pretrain(tmp_path, corpus, tiny(), PLAN, stop_at(100))
    with pytest.raises(InputError, match="was begun with seed 0: expected 1"):
        pretrain(tmp_path, corpus, tiny(), replace(PLAN, seed=1))
    with pytest.raises(InputError, match="was begun with model"):
        pretrain(tmp_path, corpus, tiny(rope_theta=500.0), PLAN)


def test_another_corpus_in_the_same_folder_is_refused(corpus, tmp_path):
    with pytest.raises(Stopped):
        pretrain(tmp_path / "out", corpus, tiny(), PLAN, stop_at(100))
    ranks = {bytes([i]): i for i in range(256)}
    other = pack(
        [Document("a", str(i), "another text " * 50) for i in range(99)],
        Tokenizer(ranks),
        tmp_path / "corpus",
    )
    with pytest.raises(InputError, match="was begun with corpus"):
        pretrain(tmp_path / "out", other, tiny(), PLAN)


def test_a_corpus_that_does_not_fit(corpus, tmp_path):
    with pytest.raises(InputError, match="less than the model's vocab_size 300"):
        pretrain(tmp_path, corpus, tiny(vocab_size=300), PLAN)
    long = replace(PLAN, length=10**7)
    with pytest.raises(InputError, match="more than the 10000000 of a piece"):
        pretrain(tmp_path, corpus, tiny(), long)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch", 1.5),
        ("length", -1),
        ("seed", -1),
        ("rate", 0),
        ("rate", float("nan")),
        ("decay", 2),
        ("warmup", -1),
        ("balance", "both"),
        ("balance_weight", -0.1),
        ("seed", True),
    ],
)
def test_settings_out_of_range(name, value):
    with pytest.raises(InputError, match=f"{name} is .*: expected .*; change it"):
        TextPlan(**{name: value})


def test_the_learning_rate_rises_stays_and_falls():
    plan = TextPlan(steps=1000, rate=0.01, warmup=100, decay=0.4)
    rates = [plan.learning_rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-4) and max(rates) == pytest.approx(0.01)
    assert rates[99:600] == pytest.approx([0.01] * 501)
    assert rates[800] == pytest.approx(0.005) and rates[-1] == pytest.approx(2e-4)
    assert sorted(rates[600:], reverse=True) == rates[600:]


def test_kinds_are_named():
    with pytest.raises(InputError, match="The kind is 'sparse'"):
        small_text_config(100, "sparse")
