"""The variants of benchmarks/ablations.py: each trains, goes on, and answers."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import ablations
from mllama_lite.small_model.evaluation import answers, held_out
from mllama_lite.small_model.training import Plan, draw_batch, project
from mllama_lite.tiles import Tiles, canvases

PLAN = Plan(vision_steps=1, joint_steps=2, decay_steps=1, images=2, questions=2)
SECONDS = {"vision": 1.0, "joint": 1.0}


@pytest.fixture(scope="module")
def items():
    return held_out("validation", 2)[::3]


def by_name(name):
    return next(v for v in ablations.VARIANTS if v.name == name)


@pytest.mark.parametrize("variant", ablations.VARIANTS, ids=lambda v: v.name)
def test_a_stopped_training_ends_as_one_that_was_not(variant, tmp_path, items):
    plan = variant.plan(PLAN, SECONDS)
    whole = ablations.new_trainer(variant, plan)
    start = {name: p.clone() for name, p in whole.model.named_parameters()}
    with torch.enable_grad():
        for batch in whole.batches(plan.steps, workers=0):
            assert whole.train_step(batch).isfinite()
            if whole.step == 2:
                whole.save(tmp_path / "state.pt")
        part = ablations.new_trainer(variant, plan)
        part.load(tmp_path / "state.pt")
        for batch in part.batches(plan.steps, workers=0):
            part.train_step(batch)
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, part.model.get_parameter(name)), name
        moved = not torch.equal(parameter, start[name])
        # A batch of two pictures has few places, so a table by place may not move.
        assert moved == parameter.requires_grad or "tile_embedding" in name, name
    vlm = variant.vlm(whole.model.eval(), whole.tokenizer)
    assert len(answers(vlm, items[:2])) == 2


def test_fixed_gates_and_places_are_what_they_say():
    model = ablations.new_trainer(by_name("no gates"), PLAN).model
    gates = [p for p in model.parameters() if p.numel() == 1]
    assert len(gates) == 13 and all(gate.tanh() == 1 for gate in gates)
    # Without tile embeddings, tiles that change places only change places.
    encoder = ablations.new_trainer(
        by_name("no tile embeddings"), PLAN
    ).model.vision_model
    pixels = torch.randn(1, 4, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    square = torch.tensor([canvases().index((2, 2)) + 1])
    order = [2, 0, 3, 1]
    difference = encoder(pixels, square)[:, order] - encoder(pixels[:, order], square)
    assert difference.abs().max() < 1e-4


def test_prepended_tokens_learn_from_answers():
    plan = replace(PLAN, vision_steps=0, patch_weight=0.0)
    trainer = ablations.new_trainer(by_name("prepended tokens"), plan)
    before = trainer.model.multi_modal_projector.bias.clone()
    with torch.enable_grad():
        trainer.train_step(next(iter(trainer.batches(1, workers=0))))
    assert not torch.equal(before, trainer.model.multi_modal_projector.bias)


def test_prepended_decoder_sees_what_training_saw():
    """The teacher-forced loss, token by token, out of the decoder that answers."""
    variant = by_name("prepended tokens")
    trainer = ablations.new_trainer(variant, PLAN)
    model, vlm = trainer.model, variant.vlm(trainer.model, trainer.tokenizer)
    batch = draw_batch(
        replace(PLAN, images=3),
        3,
        trainer.masks,
        trainer.tokenizer,
        model.config.vision,
    )
    image_id = model.config.image_token_index
    # One row without an image, as training has now and then.
    keep = batch.tokens[1] != image_id
    for rows, padding in ((batch.tokens, 0), (batch.labels, -100)):
        rows[1] = F.pad(rows[1][keep], (0, 1), value=padding)
    loss = ablations.prepended_answer_loss(model, batch, project(model, batch))
    options = canvases()
    tiles = [
        Tiles(pixels, id, options[id - 1])
        for pixels, id in zip(batch.pixel_values, batch.aspect_ratio_ids.tolist())
    ]
    encoded = model.encode_images(tiles)
    rows, vision, targets = [], [], []
    for i, (tokens, labels) in enumerate(zip(batch.tokens, batch.labels)):
        for end in (labels >= 0).nonzero()[:, 0].tolist():
            rows.append(tokens[: end + 1].tolist())
            image = encoded[i * len(tiles) // len(batch.tokens)]
            vision.append(image if image_id in rows[-1] else None)
            targets.append(labels[end])
    assert None in vision
    logits = vlm.next_logits(rows, vision)
    assert abs(F.cross_entropy(logits, torch.stack(targets)) - loss) < 1e-5
    # And its greedy answer is the likeliest token each time.
    images = [(tile,) for tile in tiles]
    prompt = rows[0][: rows[0].index(image_id) + 8]
    (written,) = generated(vlm, prompt, images[0][0])
    for i, id in enumerate(written):
        assert vlm.next_logits([prompt + written[:i]], encoded[:1]).argmax() == id


def generated(vlm, prompt, tiles):
    """`generate_batch` for an image that is cut into tiles already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablations, "image_to_tiles", lambda image, side: image)
        return vlm.generate_batch([prompt], [[tiles]], 5, stop_ids=())
