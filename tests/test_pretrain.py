"""Training: what a batch teaches, what a step computes, and that it can stop anywhere."""

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cases
import reference
from mllama_lite import InputError, image_to_tiles, load
from mllama_lite.small_model import training
from mllama_lite.small_model.patches import PATCH_TARGETS, patch_targets
from mllama_lite.small_model.questions import UNKNOWN, WORDINGS, Question, ask
from mllama_lite.small_model.scenes import COLOURS, KINDS, draw_scene, load_masks
from mllama_lite.small_model.training import (
    Plan,
    SceneBatch,
    answer_loss,
    draw_batch,
    encode_turns,
    new_trainer,
    project,
    train,
)
from mllama_lite.tiles import canvases, resized_size
from mllama_lite.tokenizer import ImagePart
from mllama_lite.vlm import VLM
from test_scenes import kind_of, oracle

TINY = Plan(vision_steps=3, joint_steps=6, decay_steps=2, images=2, questions=2)


@pytest.fixture(scope="module")
def masks():
    return load_masks("train")


@pytest.fixture(scope="module")
def fresh():
    """A trainer at its first step, for tests that only read it."""
    return new_trainer(TINY)


def draw(fresh, masks, step, plan=TINY, with_text=True):
    vision = fresh.model.config.vision
    return draw_batch(plan, step, masks, fresh.tokenizer, vision, with_text)


@pytest.fixture
def drawn(monkeypatch):
    """The list of scenes that `draw_batch` draws."""
    scenes = []

    def recording(*arguments, **options):
        scenes.append(draw_scene(*arguments, **options))
        return scenes[-1]

    monkeypatch.setattr(training, "draw_scene", recording)
    return scenes


def same_batch(a, b):
    return a.num_tiles == b.num_tiles and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for name in SceneBatch.__dataclass_fields__
        if name != "num_tiles"
    )


def test_a_batch_is_a_function_of_seed_and_step(fresh, masks):
    first = [draw(fresh, masks, step) for step in range(6)]
    np.random.seed(7)
    torch.manual_seed(7)
    for step in (5, 0, 3, 1, 4, 2):
        assert same_batch(draw(fresh, masks, step), first[step])
    pairs = [(a, b) for i, a in enumerate(first) for b in first[:i]]
    assert not any(same_batch(a, b) for a, b in pairs)
    other = draw(fresh, masks, 0, replace(TINY, seed=1))
    assert not same_batch(other, first[0])


def test_batches_drawn_ahead_are_the_same(fresh, masks):
    """By another process or in this one, with questions in the second stage only."""
    for workers in (0, 1):
        batches = list(fresh.batches(TINY.steps, workers))
        assert len(batches) == TINY.steps
        for step, batch in enumerate(batches):
            assert (len(batch.tokens) > 0) == (step >= TINY.vision_steps)
            want = draw(fresh, masks, step, with_text=step >= TINY.vision_steps)
            assert same_batch(batch, want)


def spoken(tokenizer, row):
    """Decoded (question, answer) of every turn of a row."""
    turns = re.findall(
        r"<\|start_header_id\|>user<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>"
        r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n(.*?)<\|eot_id\|>",
        tokenizer.decode(row),
    )
    return [(question, answer) for question, answer in turns]


def labelled(tokenizer, labels):
    """Decoded runs of labels."""
    runs = re.split(r"-100,(?:-100,)*", ",".join(map(str, labels)) + ",-100,")
    return [
        tokenizer.decode(map(int, run.strip(",").split(","))) for run in runs if run
    ]


def test_labels_are_the_answers_and_nothing_else(fresh, masks, drawn):
    """And each answer is right, by the oracle of test_scenes.py."""
    plan = Plan(seed=5, images=3, questions=3)
    tokenizer, blind, double = fresh.tokenizer, 0, 0
    for step in range(60):
        drawn.clear()
        batch = draw(fresh, masks, step, plan)
        assert len(drawn) == 3 and len(batch.tokens) == len(batch.labels) == 9
        for i, scene in enumerate(drawn):
            tiles = image_to_tiles(scene.image, 56)
            assert torch.equal(batch.pixel_values[i], tiles.pixel_values)
            assert batch.aspect_ratio_ids[i] == tiles.aspect_ratio_id
            assert batch.num_tiles == tiles.num_tiles
        for i, (row, labels) in enumerate(zip(batch.tokens, batch.labels)):
            here = labels >= 0
            assert torch.equal(labels[:-1][here[:-1]], row[1:][here[:-1]])
            turns = spoken(tokenizer, row.tolist())
            assert labelled(tokenizer, labels.tolist()) == [
                answer + "<|eot_id|>" for _, answer in turns
            ]
            end = int(here.nonzero().max()) + 2
            assert row[end - 1] == tokenizer.special["<|eot_id|>"]
            assert not row[end:].any() and not here[end - 1 :].any()
            images = (row == tokenizer.image_id).nonzero()[:, 0].tolist()
            seen = torch.zeros(len(row), 1, dtype=torch.bool)
            seen[images[0] if images else len(row) :] = True
            assert torch.equal(batch.sees[i], seen)
            blind, double = blind + (not images), double + (len(turns) == 2)
            for turn, (text, answer) in enumerate(turns):
                question = text.removeprefix("<|image|>")
                assert (text != question) == (bool(images) and turn == 0)
                right = oracle(kind_of(question), question, drawn[i // 3])
                assert answer == (right if images else UNKNOWN)
    assert blind > 2 and double > 20


def test_questions_and_things_are_as_the_plan_says(fresh, masks, drawn):
    def only(wanted):
        return tuple(float(kind == wanted) for kind in WORDINGS)

    plan = Plan(images=2, questions=3, kinds=("7", "star"), num_things=1)
    plan = replace(plan, weights=only("count"), later_weights=only("exists"))
    plan, kinds = replace(plan, later_step=4), []
    for step in range(8):
        for row in draw(fresh, masks, step, plan).tokens.tolist():
            for text, _ in spoken(fresh.tokenizer, row):
                kinds.append((step, kind_of(text.removeprefix("<|image|>"))))
    assert set(kinds) == {
        (step, "exists" if step > 3 else "count") for step in range(8)
    }
    assert {len(scene.things) for scene in drawn} == {1}
    assert {scene.things[0].kind for scene in drawn} == {"7", "star"}


def test_a_conversation_with_its_labels(fresh):
    tokenizer = fresh.tokenizer
    turns = [
        Question("one", "Which digit is this?", "4"),
        Question("count", "Why?", "no"),
    ]
    tokens, labels = encode_turns(tokenizer, turns)
    message = {"role": "user", "content": [ImagePart(), "Which digit is this?"]}
    prompt, _ = tokenizer.encode_chat([message])
    end, four = tokenizer.special["<|eot_id|>"], tokenizer.encode("4")
    assert tokens[: len(prompt)] == prompt
    assert labels[: len(prompt) + len(four)] == [-100] * (len(prompt) - 1) + [
        *four,
        end,
    ]
    assert (
        len(tokens) == len(labels) and labelled(tokenizer, labels)[1] == "no<|eot_id|>"
    )
    blind, labels = encode_turns(tokenizer, turns, image=False)
    assert tokenizer.image_id not in blind
    assert labelled(tokenizer, labels) == ["I don't know<|eot_id|>"] * 2


def test_every_word_of_questions_and_answers_is_one_token(fresh, masks):
    import regex

    from mllama_lite.tokenizer import SPLIT_PATTERN

    rng = np.random.default_rng(0)
    for _ in range(100):
        scene = draw_scene(rng, masks)
        for kind in WORDINGS:
            if question := ask(rng, scene, kind):
                for text in (question.text, question.answer):
                    words = regex.findall(SPLIT_PATTERN, text)
                    assert len(fresh.tokenizer.encode(text)) == len(words)


def covered(scene, things, fine=4):
    """For each thing the share of each patch that it covers, [things, patches].

    Counted on a grid of points, `fine` on a side of a pixel, in the order of the tokens.
    """
    rows, columns = image_to_tiles(scene.image, 56).canvas
    width, height = scene.image.size
    new_height, new_width = resized_size(height, width, (rows, columns), 56)
    x = (np.arange(columns * 56 * fine) + 0.5) / fine * width / new_width
    y = (np.arange(rows * 56 * fine) + 0.5) / fine * height / new_height
    shares = []
    for thing in things:
        left, top, right, bottom = thing.box
        rim = 0.12 * (right - left)  # masks have an empty rim
        inside = ((y > top + rim) & (y < bottom - rim))[:, None] & (
            (x > left + rim) & (x < right - rim)
        )
        tiles = inside.reshape(rows, 56 * fine, columns, 56 * fine).swapaxes(1, 2)
        for tile in tiles.reshape(rows * columns, 4, 14 * fine, 4, 14 * fine):
            shares.append(tile.mean(axis=(1, 3)).flatten())
    return np.array(shares).reshape(len(things), rows * columns * 16)


def test_patch_targets_agree_with_a_count(fresh, masks):
    config, rng, seen = fresh.model.config.vision, np.random.default_rng(1), 0
    names = list(PATCH_TARGETS)
    for i in range(120):
        scene = draw_scene(rng, masks, 7 if i % 4 == 0 else None)
        targets = patch_targets(scene, config)
        shares = covered(scene, scene.things)
        best = shares.max(axis=0, initial=0)
        assert targets.shape == (len(best), 7) and len(best) % 16 == 0
        assert (targets[best < 0.1] == torch.tensor([0] + [-100] * 6)).all()
        second = np.sort(shares, axis=0)[-2] if len(shares) > 1 else 0 * best
        from_top = sorted(scene.things, key=lambda thing: thing.box[1] + thing.box[3])
        for patch in np.nonzero((best > 0.2) & (best - second > 0.05))[0]:
            number = shares[:, patch].argmax()
            thing = scene.things[number]
            got = dict(zip(names, targets[patch].tolist()))
            assert got["paper or thing"] == 1
            assert KINDS[got["kind"]] == thing.kind
            assert list(COLOURS)[got["colour"]] == thing.colour
            orders = got["from the left"], got["from the top"]
            few = len(scene.things) <= 4
            assert orders == ((number, from_top.index(thing)) if few else (-100, -100))
            x, y = np.array(thing.centre) / scene.image.size
            assert got["column"] == (x >= 1 / 3) + int(x >= 2 / 3)
            assert got["row"] == (y >= 1 / 3) + int(y >= 2 / 3)
            seen += 1
    assert seen > 1000


def test_the_patch_in_the_middle_of_a_thing_knows_it(fresh, masks):
    config, rng = fresh.model.config.vision, np.random.default_rng(2)
    for _ in range(60):
        scene = draw_scene(rng, masks)
        targets = patch_targets(scene, config)
        rows, columns = image_to_tiles(scene.image, 56).canvas
        size = resized_size(scene.image.height, scene.image.width, (rows, columns), 56)
        for thing in scene.things:
            x, y = thing.centre
            x, y = x * size[1] / scene.image.width, y * size[0] / scene.image.height
            tile, inside = (
                (y // 56) * columns + x // 56,
                (y % 56 // 14) * 4 + x % 56 // 14,
            )
            assert targets[int(tile * 16 + inside)][1] == KINDS.index(thing.kind)


def test_the_patch_head_is_a_mean_of_each_target(fresh):
    head = training.PatchHead(128)
    vision = torch.randn(2, 4, 17, 128, generator=torch.Generator().manual_seed(0))
    targets = torch.stack(
        [torch.arange(2 * 64).view(2, 64) % n for n in PATCH_TARGETS.values()], dim=-1
    )
    targets[0, 5:, 1:], targets[..., 4] = -100, -100
    logits = (
        head(vision[:, :, 1:]).reshape(2, 64, -1).split([*PATCH_TARGETS.values()], -1)
    )
    for i, (part, loss) in enumerate(zip(logits, head.loss(vision, targets))):
        costs = [
            -part[n, p].log_softmax(-1)[targets[n, p, i]]
            for n in range(2)
            for p in range(64)
            if targets[n, p, i] >= 0
        ]
        assert abs(loss - (sum(costs) / len(costs) if costs else 0)) < 1e-5
        assert bool(costs) == (i != 4)


def test_answer_loss_is_the_mean_over_single_rows(fresh, masks, drawn, proof):
    """Rows one by one through `VLM.logits`, in fp32; some have two turns, some no image."""
    vlm, plan = VLM(fresh.model, fresh.tokenizer), Plan(seed=5, images=3, questions=3)
    image_id, blind, tiles = fresh.tokenizer.image_id, 0, set()
    worst = 0.0
    for step in range(2, 20):
        drawn.clear()
        batch = draw(fresh, masks, step, plan)
        loss = answer_loss(fresh.model, batch, project(fresh.model, batch))
        total, count = 0.0, 0
        for i, (row, labels) in enumerate(zip(batch.tokens.tolist(), batch.labels)):
            end = int((labels >= 0).nonzero().max()) + 2
            images = [drawn[i // 3].image] if image_id in row else []
            logits = vlm.logits(row[:end], images)
            total += F.cross_entropy(logits, labels[:end], reduction="sum").item()
            count += (labels >= 0).sum().item()
            blind += not images
        worst = max(worst, abs(loss.item() - total / count))
        tiles.add(batch.num_tiles)
    assert blind and len(tiles) > 2
    proof(
        "Loss of the answers, training from nothing",
        "row by row, as one answers",
        "18 batches about 3 pictures each",
        worst,
        1e-5,
    )


def tables(model):
    """The tables of tile positions, each [canvases + 1, K, P, D] or [.., K, 1, D]."""
    vision = model.vision_model
    return [
        module.embedding.weight.view(9, 4, -1)
        if hasattr(module, "embedding") and isinstance(module.embedding, nn.Embedding)
        else module.tile_embedding.weight.view(9, 4, -1)
        for module in (
            vision.pre_tile_positional_embedding,
            vision.gated_positional_embedding,
            vision.post_tile_positional_embedding,
        )
    ]


def test_tables_of_places_stay_alike_and_metas_code_can_hold_the_model(proof):
    plan = Plan(
        11, vision_steps=10, joint_steps=4, decay_steps=1, images=2, questions=1
    )
    trainer, counts = new_trainer(plan), set()
    before = [table.detach().clone() for table in tables(trainer.model)]
    with torch.enable_grad():
        for batch in trainer.batches(plan.steps, workers=0):
            counts.add(batch.num_tiles)
            trainer.train_step(batch)
    assert counts == {1, 2, 3, 4}
    for table, first in zip(tables(trainer.model), before):
        place = {}
        for i, (rows, columns) in enumerate(canvases(), start=1):
            assert not table[i, rows * columns :].any()
            for tile in range(rows * columns):
                assert not torch.equal(table[i, tile], first[i, tile])
                vector = place.setdefault(divmod(tile, columns), table[i, tile])
                assert torch.equal(vector, table[i, tile])
        assert not table[0].any() and len(place) == 8
    model, config = trainer.model.eval(), trainer.model.config
    meta, worst = reference.meta_from_ours(model), 0.0
    for seed in (0, 1):
        rows, images = cases.batch(seed, config)
        ours = cases.batch_logits(model, rows, images)
        theirs = reference.meta_logits(meta, rows, images)
        for row, mine, other in zip(rows, ours, theirs):
            difference = (mine[: len(row)] - other[: len(row)]).abs().max().item()
            worst = max(worst, difference)
    proof(
        "Model after 14 steps of training, logits",
        "Meta",
        "2 batches of 4 rows",
        worst,
        2e-5,
    )


class Stop(Exception):
    """Raised in the middle of training."""


LONGER = Plan(vision_steps=40, joint_steps=20, decay_steps=5, images=1, questions=1)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """The folder of a training that was never stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    with torch.enable_grad():
        train(folder, LONGER, workers=0)
    return folder


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def equal(a, b):
    """Whether two nests of dicts, lists and tensors are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def assert_same_training(folder, other):
    """Every file the same to the last byte; of the state, every tensor."""
    mine, theirs = files(folder), files(other)
    states = [torch.load(path / "training.pt") for path in (folder, other)]
    assert equal(*states) and states[0]["step"] == LONGER.steps
    del mine["training.pt"], theirs["training.pt"]
    assert mine == theirs and {"model.safetensors", "history.json"} < set(mine)


@pytest.mark.parametrize("stops", [[3], [33, 52], [60]])
def test_a_training_that_was_stopped_equals_one_that_was_not(
    unbroken, tmp_path, monkeypatch, stops
):
    """Stopped before the first save, in each stage, and after the last step."""
    monkeypatch.setattr(training, "SAVE_EVERY", 20)
    begun = []

    def stopping(trainer):
        begun.append(trainer.step)
        if trainer.step == stop:
            raise Stop

    with torch.enable_grad():
        for stop in stops:
            with pytest.raises(Stop):
                train(tmp_path, LONGER, stopping, workers=0)
            assert torch.load(tmp_path / "training.pt")["step"] == stop // 20 * 20
            assert not (tmp_path / "model.safetensors").exists()
        stop, first = None, len(begun)
        train(tmp_path, LONGER, stopping, workers=1)
    assert begun[first:] == list(range(stops[-1] // 20 * 20 + 1, 61))
    assert_same_training(tmp_path, unbroken)


KILLED = f"""
import os, signal, sys
import torch
from mllama_lite.small_model import training

def progress(trainer):
    if trainer.step == 45:
        os.kill(os.getpid(), signal.SIGKILL)

training.SAVE_EVERY = 20
torch.set_num_threads({torch.get_num_threads()})
training.train(sys.argv[1], training.{LONGER}, progress, workers=0)
"""


def test_a_training_that_was_killed_goes_on(unbroken, tmp_path, proof):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, timeout=600).returncode == -9
    assert set(files(tmp_path)) <= {"training.lock", "training.pt"}
    assert torch.load(tmp_path / "training.pt")["step"] == 40
    with torch.enable_grad():
        train(tmp_path, LONGER, workers=0)
    assert_same_training(tmp_path, unbroken)
    proof(
        "Training from nothing, killed and gone on with",
        "one left alone, to the bit",
        "60 steps, killed in step 45",
        0,
        0,
    )


def test_another_plan_in_the_same_folder_is_refused(unbroken):
    before = files(unbroken)
    for name, value in (("seed", 1), ("joint_steps", 21), ("weights", (1.0,) * 9)):
        plan = replace(LONGER, **{name: value})
        with pytest.raises(InputError, match=f"was begun with {name} .*another folder"):
            train(unbroken, plan)
    assert files(unbroken) == before


@pytest.mark.parametrize("damage", [b"", b"not a state", None])
def test_a_damaged_state_is_refused(unbroken, tmp_path, damage):
    whole = (unbroken / "training.pt").read_bytes()
    damage = whole[: len(whole) // 2] if damage is None else damage
    (tmp_path / "training.pt").write_bytes(damage)
    with pytest.raises(InputError, match="training.pt cannot be read"):
        train(tmp_path, TINY, workers=0)


def test_history_holds_the_means_of_fifty_steps(unbroken):
    import json

    (entry,) = json.loads((unbroken / "history.json").read_text())
    assert entry["step"] == 50 and set(entry["patches"]) == set(PATCH_TARGETS)
    assert 0 < entry["patches"]["paper or thing"] < 2 and entry["answers"] > 0
    assert len(entry["gates"]) == 3 + 2 * 2 + 3 * 2  # embeddings, global, cross


def test_learning_rate_rises_stays_and_falls():
    plan = Plan(vision_steps=1000, joint_steps=2000, decay_steps=500)
    rates = np.array([plan.learning_rate(step) for step in range(3001)])
    vision, joint, decay = rates[:1000], rates[1000:2500], rates[2500:]
    for rising, highest in ((vision, plan.vision_rate), (joint, plan.joint_rate)):
        assert (np.diff(rising[:200]) > 0).all() and rising[0] < highest / 100
        assert np.allclose(rising[199:], highest) and rising.max() <= highest
    assert decay[0] == plan.joint_rate and decay[-1] == 0 and decay[-2] > 0
    assert np.allclose(np.diff(decay), -plan.joint_rate / 500)


def test_the_folder_loads_here(unbroken):
    with torch.enable_grad():
        trained = train(unbroken, LONGER, workers=0)  # nothing is left to do
    loaded = load(unbroken, device="cpu")
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.report.missing == loaded.report.unexpected == []
    ours, theirs = trained.model.state_dict(), loaded.model.state_dict()
    assert equal(dict(ours), dict(theirs))
    tokens = loaded.tokenizer.encode("Is there an 8? Über 100 日本")
    assert tokens == trained.tokenizer.encode("Is there an 8? Über 100 日本")


def test_the_folder_loads_in_transformers(unbroken, masks):
    import transformers

    # Its processor on torchvision rounds otherwise where it resizes: chapter 5.
    processor = transformers.AutoProcessor.from_pretrained(unbroken, backend="pil")
    hub = transformers.MllamaForConditionalGeneration.from_pretrained(
        unbroken, dtype=torch.float32, attn_implementation="sdpa"
    )
    hub = reference.correct(hub.eval())
    vlm = load(unbroken, device="cpu", dtype="float32")
    rng, seen = np.random.default_rng(0), set()
    for text in (
        "Which digit is red?",
        "How many\n\nthings?",
        "Über 12345 zebras 日本",
    ):
        for canvas in canvases():
            image = draw_scene(rng, masks, canvas=canvas).image
            content = [{"type": "image"}, {"type": "text", "text": text}]
            prompt = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            inputs = processor(
                images=[[image]],
                text=[prompt],
                add_special_tokens=False,
                return_tensors="pt",
            )
            message = {"role": "user", "content": [ImagePart(image), text]}
            tokens, _ = vlm.tokenizer.encode_chat([message])
            assert inputs["input_ids"].tolist() == [tokens]
            tiles = image_to_tiles(image, 56)
            pixels = inputs["pixel_values"][0, 0]
            assert (pixels - tiles.pixel_values).abs().max() < 1e-6
            assert inputs["aspect_ratio_ids"].item() == tiles.aspect_ratio_id
            logits = hub(**inputs).logits[0].float()
            assert (logits - vlm.logits(tokens, [image])).abs().max() < 2e-5
            seen.add(tiles.aspect_ratio_id)
            assert processor.tokenizer.decode(tokens) == vlm.tokenizer.decode(tokens)
    assert seen == set(range(1, 9))
    assert set(hub.generation_config.eos_token_id) == vlm.tokenizer.stop_ids
