"""Benchmarks of chapter 17: the duel's variants learn and answer, and the SigLIP that ships."""

import json
from dataclasses import replace

import pytest
import torch

import duel
import pairs
from mllama_lite.small_model.evaluation import answers, held_out
from mllama_lite.small_model.scenes import load_masks
from mllama_lite.small_model.training import Plan, draw_batch
from mllama_lite.training_folder import STATE

PLAN = Plan(vision_steps=0, joint_steps=4, images=2, questions=2)


@pytest.fixture(scope="module")
def encoder():
    model, _ = duel.new_model(duel.VARIANTS[0], 0)
    return {n: t.clone() for n, t in model.vision_model.state_dict().items()}


@pytest.fixture
def enable_grad():
    with torch.enable_grad():
        yield


@pytest.mark.parametrize("variant", duel.VARIANTS, ids=lambda v: v.name)
def test_a_variant_learns_goes_on_and_answers(variant, encoder, tmp_path, enable_grad):
    whole, stopped = (duel.DuelTrainer(variant, PLAN, encoder) for _ in range(2))
    before = [p.detach().clone() for p in whole.model.parameters()]
    for _ in range(3):
        whole.train_step()
    assert whole.sums.isfinite().all()
    moved = [not torch.equal(a, b) for a, b in zip(before, whole.model.parameters())]
    assert sum(moved) > 0.9 * len(moved)
    stopped.train_step()
    stopped.save(tmp_path / STATE)
    again = duel.DuelTrainer(variant, PLAN, encoder)
    again.load(tmp_path / STATE)
    for _ in range(2):
        again.train_step()
    for a, b in zip(whole.model.parameters(), again.model.parameters()):
        assert torch.equal(a, b)
    items = held_out("validation", 1)
    with torch.no_grad():
        vlm = duel.vlm_of(variant, whole.model, whole.tokenizer)
        found = answers(vlm, items)
    assert len(found) == len(items) and len(set(found)) > 1


def test_all_variants_begin_with_one_encoder_and_are_of_one_size(encoder):
    sizes = []
    for variant in duel.VARIANTS:
        model = duel.DuelTrainer(variant, PLAN, encoder).model
        tower = model.vision_tower if variant.tokens else model.vision_model
        for name, tensor in tower.state_dict().items():
            assert torch.equal(tensor, encoder[name])
        sizes.append(sum(p.numel() for p in model.parameters()))
    assert max(sizes) < 1.06 * min(sizes)


@pytest.mark.parametrize("variant", duel.VARIANTS[1:], ids=lambda v: v.name)
def test_no_answer_is_told_by_what_follows_it(variant, encoder):
    """The loss of each row's first answer token does not hang on the tokens behind it."""
    trainer = duel.DuelTrainer(variant, PLAN, encoder)
    config = trainer.model.config.vision
    batch = draw_batch(PLAN, 0, load_masks("train"), trainer.tokenizer, config)
    labels = torch.full_like(batch.labels, -100)
    tokens = batch.tokens.clone()
    for i, row in enumerate(batch.labels):
        first = int((row >= 0).int().argmax())
        labels[i, first] = row[first]
        tokens[i, first + 1 :] = 1
    alone = replace(batch, labels=labels)
    other = replace(alone, tokens=tokens)
    assert not torch.equal(batch.tokens, tokens)
    found = [duel.prepended_loss(trainer.model, one).item() for one in (alone, other)]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("variant", duel.VARIANTS[1:4], ids=lambda v: v.name)
def test_a_conversation_goes_on(variant, encoder):
    """A second turn reads the cache, and says what a new session says after all of it."""
    trainer = duel.DuelTrainer(variant, PLAN, encoder)
    vlm = duel.vlm_of(variant, trainer.model, trainer.tokenizer)
    image = held_out("validation", 1)[0].image
    question, more = "What is here?", "Which digit is red?"
    first = vlm.ask(question, image, max_new_tokens=6)
    assert "".join(vlm.stream(question, image, max_new_tokens=6)) == first
    talk = vlm.conversation()
    assert talk.ask(question, image, max_new_tokens=6) == first
    turn = trainer.tokenizer.encode_message("user", more)[0]
    prompt = talk.tokens + turn + trainer.tokenizer.encode_header("assistant")
    talk.ask(more, max_new_tokens=6)
    written = talk.tokens[len(prompt) :]
    if not variant.prefix:  # whose first prompt alone is read in both directions
        again = vlm.generate(prompt, [image], max_new_tokens=6)
        assert written[: len(again)] == again
    assert talk.tokens[: len(prompt)] == prompt and written


def test_cost_counts_what_is_kept():
    text = duel.new_model(duel.VARIANTS[0], 0)[0].config.text
    of_token = 2 * text.num_key_value_heads * text.head_dim * 4  # fp32, in one layer
    found = {v.name: duel.cost(v, "Which?", count=1) for v in duel.VARIANTS[:3]}
    for name, tokens, layers in (("cross-attention", 17, 3), ("16, causal", 16, 7)):
        one, two = found[name][0]["bytes"], found[name][1]["bytes"]
        assert two - one == tokens * layers * of_token
    assert found["4, causal"][3]["bytes"] < found["16, causal"][3]["bytes"]


def test_pairs_are_learned(enable_grad):
    pixels, names = pairs.pictures("train", 600, seed=3)
    trainer = pairs.PairTrainer(pixels, names, steps=200)
    losses = [trainer.train_step().item() for _ in range(200)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


def test_the_siglip_that_ships_is_the_one_that_was_measured():
    said = json.loads(pairs.WEIGHTS.with_suffix(".json").read_text())
    held = pairs.pictures("test", said["held out"]["pictures"], seed=1)
    name, colour = pairs.right_names(pairs.trained_siglip(), *held)
    assert name == pytest.approx(said["as stored"]["name"], abs=0.003)
    assert colour == pytest.approx(said["as stored"]["colour"], abs=0.003)
