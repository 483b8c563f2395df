"""Chapter 11: bugs of a training, and what notices them."""

import tempfile
from functools import cache

import numpy as np
import torch

from bugs import a_bug, a_check, replaced
from mllama_lite.checkpoints.loading import save_model
from mllama_lite.small_model import training
from mllama_lite.small_model.first_values import make_ranks, share_places, tile_places
from mllama_lite.small_model.questions import ask
from mllama_lite.small_model.scenes import draw_scene, load_masks
from mllama_lite.small_model.training import Plan, encode_turns, new_trainer
from mllama_lite.tokenizer import Tokenizer
from mllama_lite.vlm import load


@a_bug(
    "places-not-shared",
    "The copies of a tile's position, one for every canvas, are trained each by its own "
    "gradient (`share_places` is not called), and drift apart.",
    "tests/test_pretrain.py::"
    "test_tables_of_places_stay_alike_and_metas_code_can_hold_the_model",
)
def places_not_shared():
    with replaced(share_places, lambda vision_model: None):
        yield


@a_bug(
    "prompt-counts",
    "Labels are the tokens themselves, one place on, and nothing is masked: questions "
    "and headers count as answers do.",
    "tests/test_pretrain.py::test_labels_are_the_answers_and_nothing_else",
)
def prompt_counts():
    right = encode_turns

    def wrong(tokenizer, questions, image=True):
        tokens, _ = right(tokenizer, questions, image)
        masked = [-100 if t == tokenizer.image_id else t for t in tokens[1:]]
        return tokens, [*masked, -100]

    with replaced(encode_turns, wrong):
        yield


def a_step():
    """A trainer after its first step, and the loss of that step."""
    plan = Plan(vision_steps=0, joint_steps=1, decay_steps=0, images=2, questions=1)
    with torch.enable_grad():
        trainer = new_trainer(plan)
        (batch,) = trainer.batches(1, workers=0)
        return trainer, trainer.train_step(batch)


@a_check("a step has a finite loss, and moves every matrix")
def moves():
    trainer, loss = a_step()
    before = new_trainer(trainer.plan).model.state_dict()
    assert loss.isfinite()
    for name, parameter in trainer.model.named_parameters():
        assert parameter.ndim < 2 or not torch.equal(parameter, before[name]), name


@a_check("saved in the hub's layout and loaded, the same logits")
def saved_and_loaded():
    trainer, _ = a_step()
    model = trainer.model.eval()
    tokens = torch.tensor([[trainer.tokenizer.bos_id, 5, 9]])
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_model(model, folder)
        again = load(folder, "cpu", "float32").model
        assert torch.equal(model(tokens), again(tokens))


@a_check("a place on the canvas has one vector, whatever the canvas")
def one_vector_a_place():
    """What Meta's layout can hold."""
    trainer, _ = a_step()
    places = tile_places(trainer.model.config.vision.max_num_tiles)
    for module in trainer.model.vision_model.modules():
        if isinstance(module, torch.nn.Embedding):
            parts = module.weight.detach().view(*places.shape, -1)
            for place in places[places >= 0].unique():
                same = parts[places == place]
                assert torch.equal(same, same[:1].expand_as(same))


@cache
def conversation_parts():
    rng = np.random.default_rng(0)
    scene = draw_scene(rng, load_masks("train"), 2, canvas=(2, 2))
    questions = [ask(rng, scene, "count"), ask(rng, scene, "count")]
    return Tokenizer(make_ranks()), questions


def conversation():
    tokenizer, questions = conversation_parts()
    return tokenizer, questions, *training.encode_turns(tokenizer, questions)


@a_check("as many labels as tokens")
def as_many():
    _, _, tokens, labels = conversation()
    assert len(tokens) == len(labels)


@a_check("a label is the token that follows")
def following():
    _, _, tokens, labels = conversation()
    pairs = zip(tokens[1:], labels, strict=False)
    assert all(label in (-100, token) for token, label in pairs)


@a_check("the labels, decoded, are the answers and nothing else")
def answers_alone():
    tokenizer, questions, _, labels = conversation()
    told = tokenizer.decode([label for label in labels if label >= 0])
    assert told == "".join(f"{question.answer}<|eot_id|>" for question in questions)
