"""The small model that the package ships: what has to hold, however well it answers."""

import numpy as np
import pytest
import torch
from PIL import Image

import cases
import reference
from mllama_lite import image_to_tiles, load
from mllama_lite.attention_maps import Looks, cross_weights, draw_looks, look, patch_map
from mllama_lite.checkpoints.hub import find_folder
from mllama_lite.small_model.evaluation import (
    answers,
    best_guesses,
    exact_match,
    held_out,
)
from mllama_lite.small_model.questions import UNKNOWN, ask
from mllama_lite.small_model.scenes import draw_scene, load_masks
from mllama_lite.tiles import canvases
from mllama_lite.tokenizer import ImagePart

FOLDER = find_folder()


@pytest.fixture(scope="module")
def vlm():
    return load(device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def scenes():
    """A scene for each canvas, in the order of the aspect ratio ids."""
    rng, masks = np.random.default_rng(0), load_masks("validation")
    return [draw_scene(rng, masks, canvas=canvas) for canvas in canvases()]


@pytest.fixture(scope="module")
def hub():
    """transformers' model as it reads the folder, corrected."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.MllamaForConditionalGeneration.from_pretrained(
        FOLDER, dtype=torch.float32, attn_implementation="sdpa"
    )
    return reference.correct(model.eval())


INPUTS = "every canvas, 2 and 3 images, none"


def prompt(vlm, images, question):
    message = {"role": "user", "content": [*map(ImagePart, images), question]}
    return vlm.tokenizer.encode_chat([message])[0]


@pytest.fixture(scope="module")
def prompts(vlm, scenes):
    """(rows, images): a question about each canvas, about two at once, and about none."""
    images = [[scene.image] for scene in scenes]
    images += [[scenes[1].image, scenes[6].image], [scenes[0].image] * 3, []]
    rows = [prompt(vlm, own, "What is left of the red 4?") for own in images]
    return rows, images


def test_it_is_small(vlm):
    assert 1e6 < sum(p.numel() for p in vlm.model.parameters()) < 4e6
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) <= 8 * 10**6


def test_it_is_a_whole_llama_3_2_vision():
    """Nothing of the 11B's structure is left out, and nothing is missing or unexpected."""
    vlm = load(device="cpu")
    assert vlm.model.dtype == torch.bfloat16
    assert vlm.report.missing == vlm.report.unexpected == []
    vision, text = vlm.config.vision, vlm.config.text
    assert vision.num_global_layers and vision.intermediate_layers_indices
    assert len(text.cross_attention_layers) > 1
    assert text.num_key_value_heads < text.num_attention_heads
    gates = [p for name, p in vlm.model.named_parameters() if "gate" in name]
    assert all(p.abs().min() > 1e-3 for p in gates if p.numel() == 1)


def test_all_aspect_ratios_are_seen(vlm, scenes):
    """The same question about each canvas: asked, answered, and the picture matters."""
    stored = load(device="cpu")  # in bf16
    for number, scene in enumerate(scenes, start=1):
        assert image_to_tiles(scene.image, 56).aspect_ratio_id == number
        tokens = prompt(vlm, [scene.image], "Describe the picture.")
        blank = Image.new("RGB", scene.image.size, "white")
        seen, unseen = (vlm.logits(tokens, [one])[-1] for one in (scene.image, blank))
        assert seen.isfinite().all() and (seen - unseen).abs().max() > 1e-2
        assert stored.ask("Describe the picture.", scene.image, max_new_tokens=20)


def test_metas_code_gives_the_same_logits(vlm, prompts, proof):
    rows, images = prompts
    meta = reference.meta_from_ours(vlm.model, batch=len(rows))
    ours = cases.batch_logits(vlm.model, rows, images)
    theirs = reference.meta_logits(meta, rows, images)
    worst = max(
        (a[: len(row)] - b[: len(row)]).abs().max().item()
        for row, a, b in zip(rows, ours, theirs)
    )
    proof("Trained small model, logits", "Meta", INPUTS, worst, 5e-5)


def test_transformers_corrected_gives_the_same_logits(vlm, hub, prompts, proof):
    worst = 0.0
    for row, own in zip(*prompts):
        difference = vlm.logits(row, own) - reference.hub_logits(hub, row, own)
        worst = max(worst, difference.abs().max().item())
    against = "transformers, corrected"
    proof("Trained small model, logits", against, INPUTS, worst, 5e-5)


def test_greedy_answers_equal_transformers(vlm, hub, proof):
    """506 held-out questions: each token of our answer is what transformers expects."""
    items = held_out("validation", 46)
    rows = [prompt(vlm, [one.image], one.question.text) for one in items]
    images = [[one.image] for one in items]
    # Of one canvas at a time: nothing is padded.
    order = sorted(range(len(rows)), key=lambda i: (images[i][0].size, len(rows[i])))
    new = {}
    for first in range(0, len(rows), 64):
        some = order[first : first + 64]
        own_rows, own_images = [rows[i] for i in some], [images[i] for i in some]
        new |= zip(some, vlm.generate_batch(own_rows, own_images, max_new_tokens=16))
    assert len(new) == len(rows) >= 500
    other = 0
    for i, (row, own) in enumerate(zip(rows, images)):
        logits = reference.hub_logits(hub, row + new[i], own)
        other += logits[len(row) - 1 : -1].argmax(dim=-1).tolist() != new[i]
        assert len(new[i]) == 16 or new[i][-1] in vlm.tokenizer.stop_ids
    proof(
        "Trained small model, greedy answers",
        "transformers, corrected",
        f"{len(rows)} held-out questions",
        other,
        0,
    )


def test_a_look_tells_what_ask_answers(vlm, scenes):
    for scene in scenes[::3]:
        looks = look(vlm, "Describe the picture.", scene.image, max_new_tokens=12)
        answer = vlm.ask("Describe the picture.", scene.image, max_new_tokens=12)
        assert looks.answer == answer
    images = [scenes[1].image, scenes[5].image]
    looks = look(vlm, "What is new?", images, max_new_tokens=5)
    assert looks.answer == vlm.ask("What is new?", images, max_new_tokens=5)
    assert [image.size for image in looks.images] == [image.size for image in images]


def test_a_look_keeps_characters_whole(vlm, scenes, monkeypatch):
    """Also those whose bytes are spread over several tokens."""
    ids = vlm.tokenizer.encode("né 日")
    assert len(ids) > 5
    monkeypatch.setattr(vlm, "generate", lambda *_: ids)
    assert look(vlm, "What?", scenes[0].image).answer == "né 日"


def test_a_special_token_inside_an_answer_moves_nothing(vlm, scenes, monkeypatch):
    """The weights stay with the tokens that they belong to."""
    special, image = vlm.tokenizer.special, scenes[0].image
    ids = [*vlm.tokenizer.encode("red"), special["<|python_tag|>"]]
    ids += [*vlm.tokenizer.encode(" 4"), special["<|eot_id|>"]]
    monkeypatch.setattr(vlm, "generate", lambda *_: ids)
    looks = look(vlm, "What?", image)
    assert looks.pieces == ["red", " ", "4"]
    found = inputs_and_outputs(vlm, prompt(vlm, [image], "What?") + ids, [image])
    for layer, weights in looks.weights[0].items():
        module = vlm.model.language_model.model.layers[layer].cross_attn
        last = cross_weights(module, *found[layer][0])[0, :, -3]  # of the token "4"
        assert (weights[-1].flatten(1) - last).abs().max() < 1e-6


def inputs_and_outputs(vlm, tokens, images):
    """What each cross-attention layer got and gave for a text: (arguments, output)."""
    found, hooks = {}, []
    for layer in vlm.model.cross_attention_layers:

        def keep(attention, args, output, layer=layer):
            found[layer.layer] = args, output[0]

        hooks.append(layer.cross_attn.register_forward_hook(keep))
    vlm.logits(tokens, images)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("count", [1, 2])
def test_weights_are_those_that_made_the_output(vlm, scenes, count):
    """They sum to 1, and mixing the values by them is what the fused kernel computed."""
    images = [scene.image for scene in scenes[3 : 3 + count]]
    looks = look(vlm, "Describe the picture.", images, max_new_tokens=9)
    tokens = prompt(vlm, images, "Describe the picture.")
    answer = vlm.generate(tokens, images, max_new_tokens=9)
    written = [i for i in answer if not vlm.tokenizer.is_special(i)]
    assert [vlm.tokenizer.decode([i]) for i in written] == looks.pieces and written
    found = inputs_and_outputs(vlm, tokens + answer, images)
    assert list(found) == list(vlm.config.text.cross_attention_layers)
    assert [list(weights) for weights in looks.weights] == [list(found)] * count
    last = slice(len(tokens) - 1, len(tokens) - 1 + len(written))
    for layer, ((_, _, value, _), output) in found.items():
        parts = [weights[layer] for weights in looks.weights]
        for part, image in zip(parts, images):
            tiles = image_to_tiles(image, 56).num_tiles
            assert (
                part.shape == (len(written), 4, tiles, 17)
                and part.dtype == torch.float32
            )
        weights = torch.cat([part.flatten(2) for part in parts], dim=-1)  # [A, H, V]
        assert torch.allclose(weights.sum(dim=-1), torch.ones(len(written), 4))
        if count == 1:  # else the prompt's own mask decides which image is seen
            heads = [weights[:, head] @ value[0, head // 2] for head in range(4)]
            module = vlm.model.language_model.model.layers[layer].cross_attn
            mixed = module.o_proj(torch.cat(heads, dim=-1))
            assert (mixed - output[last]).abs().max() < 1e-5 * output.abs().max()


def test_weights_of_layers_can_be_had_alone(vlm, scenes):
    """`cross_weights` against the softmax of each head's scores, one query at a time."""
    image = scenes[2].image
    tokens = prompt(vlm, [image], "Where is the star?")
    layer = vlm.model.cross_attention_layers[1]
    found = inputs_and_outputs(vlm, tokens, [image])
    (hidden, key, value, mask), _ = found[layer.layer]
    got = cross_weights(layer.cross_attn, hidden, key, value, mask)
    query = layer.cross_attn.q_proj(hidden)[0].view(len(tokens), 4, 32)
    for head in range(4):
        for t in (5, len(tokens) - 1):
            q = query[t, head] / (query[t, head].square().mean() + 1e-5).sqrt()
            q = q * layer.cross_attn.q_norm.weight
            want = torch.stack([q @ k / 32**0.5 for k in key[0, head // 2]]).softmax(0)
            assert (got[0, head, t] - want).abs().max() < 1e-6


def test_a_map_lies_as_the_patches_do():
    """Class tokens left out, tiles side by side, patches in their rows."""
    weights = torch.arange(6 * 17).view(6, 17)
    got = patch_map(weights, (2, 3))
    assert got.shape == (8, 12)
    for tile in range(6):
        for patch in range(16):
            row, column = tile // 3 * 4 + patch // 4, tile % 3 * 4 + patch % 4
            assert got[row, column] == tile * 17 + 1 + patch


def orange(picture):
    """How far red is above blue, int [height, width]."""
    pixels = np.asarray(picture).astype(int)
    return pixels[:, :, 0] - pixels[:, :, 2]


@pytest.mark.parametrize("size, canvas", [((112, 56), (1, 2)), ((60, 190), (4, 1))])
def test_orange_is_where_the_weight_is(vlm, size, canvas):
    """One patch has all of it; the picture fills the canvas or leaves a part empty."""
    tiles = canvas[0] * canvas[1]
    scale = min(canvas[1] * 56 / size[0], canvas[0] * 56 / size[1], 1.0)
    for tile, patch in ((0, 0), (0, 6), (1, 9), (tiles - 1, 1)):
        weights = torch.full((2, 4, tiles, 17), 1e-3)
        weights[1, :, tile, 1 + patch] = 0.9
        weights[1, :, 0, 0] = 5.0  # the class token has no place
        image = Image.new("RGB", size, (200, 200, 200))
        looks = Looks("a b", ["a", " b"], [image], [{1: weights, 3: weights}])
        drawn = draw_looks(looks, vlm.config.vision, height=100)
        width = max(40, round(100 * size[0] / size[1]))
        assert drawn.mode == "RGB" and drawn.size == (
            62 + 2 * (width + 6),
            24 + 2 * 106,
        )
        row, column = (
            tile // canvas[1] * 4 + patch // 4,
            tile % canvas[1] * 4 + patch % 4,
        )
        spot = (column * 14 + 7) / scale / size[0], (row * 14 + 7) / scale / size[1]
        assert max(spot) < 1
        left, top = 62 + width + 6, 24  # the second token's panel, in both layers
        for y in (top, top + 106):
            panel = orange(drawn.crop((left, y, left + width, y + 100)))
            coloured = (panel > 80).mean()
            assert panel[int(spot[1] * 100), int(spot[0] * width)] > 80
            share = (14 / scale / size[0]) * (14 / scale / size[1])
            assert 0.5 * share < coloured < 1.6 * share


def test_an_answer_is_drawn(vlm, scenes):
    for scene in scenes:
        looks = look(vlm, "What do you see?", scene.image, max_new_tokens=4)
        drawn = draw_looks(looks, vlm.config.vision, height=60)
        assert not looks.pieces or orange(drawn).max() > 100
        assert drawn.height == 24 + 3 * 66


def test_several_images_are_drawn_one_below_the_other(vlm, scenes):
    pictures = [scenes[0].image, scenes[1].image]
    looks = look(vlm, "What do you see?", pictures, max_new_tokens=3)
    each = [draw_looks(looks, vlm.config.vision, image=i) for i in (0, 1)]
    both = draw_looks(looks, vlm.config.vision)
    assert both.size == (max(one.width for one in each), sum(p.height for p in each))
    y = 0
    for one in each:
        assert both.crop((0, y, one.width, y + one.height)).tobytes() == one.tobytes()
        y += one.height


def test_it_sees(vlm):
    """Far above what guessing or another picture gives, on pictures it never saw."""
    stored, items = load(device="cpu"), held_out("validation", 20, seed=5)
    shares = {}
    for images in ("own", "wrong", "blank", "none"):
        one = stored if images == "own" else vlm  # in bf16, as it ships; or fp32
        right = exact_match(items, answers(one, items, images))["all"][0]
        shares[images] = right / len(items)
    guessed = best_guesses(items, held_out("train", 60, seed=6))
    guess = exact_match(items, guessed)["all"][0] / len(items)
    assert shares["own"] > 0.85
    # Of 220 answers a share is uncertain by 0.06 or so.
    assert max(shares["wrong"], shares["blank"], shares["none"]) < guess + 0.05 + 0.06


def test_it_knows_when_it_does_not_know():
    """A picture of one digit, and questions about things that are not on it."""
    stored, masks = load(device="cpu"), load_masks("validation")
    rng, said = np.random.default_rng(8), []
    while len(said) < 60:
        scene = draw_scene(rng, masks, 1)
        if question := ask(rng, scene, "digit"):
            if question.answer == UNKNOWN:
                said.append(stored.ask(question.text, scene.image))
    assert said.count(UNKNOWN) > 50
