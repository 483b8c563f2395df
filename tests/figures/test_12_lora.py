"""The figures of chapter 12 against the package and numpy."""

import numpy as np
import pytest

from mllama_lite import load
from mllama_lite.adapters.lora import (
    adapter_size,
    find_ranks,
    find_targets,
    groups_of,
    named_layers,
)
from mllama_lite.errors import InputError
from mllama_lite.model import MllamaConfig, empty_model

MATRICES = (
    "few directions, a long tail",
    "random numbers",
    "a chessboard",
    "a diagonal",
    "a ring",
)


@pytest.fixture(scope="module")
def big():
    return empty_model(MllamaConfig())


@pytest.fixture(scope="module")
def models(big):
    return {"the small model": load(device="cpu").model, "the 11B": big}


@pytest.mark.parametrize("matrix", MATRICES)
def test_low_rank_is_the_best_one(figure, matrix):
    shown = figure("low_rank")
    shown.set("The matrix", matrix)
    for rank in (1, 3, 8, 16):
        shown.set("Rank", rank)
        values = shown.values()
        whole, product = np.array(values["matrix"]), np.array(values["product"])
        u, sizes, v = np.linalg.svd(whole)
        assert values["sizes"] == pytest.approx(sizes, abs=1e-9)
        shares = np.cumsum(sizes**2) / np.sum(sizes**2)
        assert values["shares"] == pytest.approx(shares, abs=1e-12)
        assert np.linalg.matrix_rank(product, tol=1e-9) <= rank
        missing = np.sqrt(np.sum(sizes[rank:] ** 2))
        assert np.linalg.norm(whole - product) == pytest.approx(missing, abs=1e-9)
        assert np.allclose(values["missing"], whole - product)
        if rank < 16 and sizes[rank - 1] - sizes[rank] > 1e-6:  # else there are several
            assert np.allclose(product, (u[:, :rank] * sizes[:rank]) @ v[:rank])
    assert "100.0 % of the squared norm" in shown.words()
    assert "512 numbers in A and B, more than its 256" in shown.words()


def test_low_rank_of_matrices_that_surprise(figure):
    shown = figure("low_rank")
    for matrix, rank, kept in (
        ("a chessboard", 1, "100.0 %"),
        ("a diagonal", 1, "6.3 %"),
        ("a diagonal", 8, "50.0 %"),
    ):
        shown.set("The matrix", matrix)
        shown.set("Rank", rank)
        assert f"Rank {rank} keeps {kept} of" in shown.words()


@pytest.mark.parametrize("rank", [1, 8, 16])
def test_low_rank_size_at_11b(figure, big, rank):
    shown = figure("low_rank")
    shown.set("Rank", rank)
    size = adapter_size(big, ("self", "mlp", "cross"), rank)
    assert shown.values()["parameters"] == size
    assert shown.values()["bytes"] == 4 * size
    assert f"{size:,} parameters, a file of {4 * size / 2**20:.1f} MiB" in shown.words()


def test_low_rank_by_the_handle(figure):
    shown = figure("low_rank")
    handle = shown.root.locator("[data-drag=rank]")
    box = handle.bounding_box()
    mouse = shown.page.mouse
    mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    mouse.down()
    mouse.move(box["x"] + 400, box["y"])
    mouse.up()
    assert "Rank 16 keeps" in shown.words()


GROUPS = (
    "self self.q self.k mlp mlp.down cross vision.local vision.global projector head"
)
GOOD = (
    *GROUPS.split(),
    "all",
    "*q_proj",
    "*.self_attn.q_proj",
    "*.self_attn.[!kv]_proj",
    "*.layers.?.mlp.fc[12]",
    "*.layers.[0-2].mlp.*",
    "*.[p-r]_proj",
    "language_model.*.1*_proj",
    "self,mlp,cross",
    "*v_proj,head",
    "all:3,head:64,self.q:5",
)
BAD = (
    "attention",
    "vision_model.*",
    "*",
    "Q_proj",
    "*attn",
    "",
    "self,nothing",
    "self:0",
    "self:",
    "head:4000000",
    "self.k:9999",
)


def test_target_patterns_knows_every_module(figure, models):
    shown = figure("target_patterns")
    for name, model in models.items():
        shown.set("In", name)
        modules = [(n, type(m).__name__) for n, m in named_layers(model)]
        assert [tuple(pair) for pair in shown.values()["modules"]] == modules
        assert shown.values()["whole"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["the small model", "the 11B"])
def test_target_patterns_chooses_as_find_targets(figure, models, name):
    shown, model = figure("target_patterns"), models[name]
    shown.set("In", name)
    of = groups_of(model)
    for text, rank in zip(GOOD, (8, 1, 64) * len(GOOD)):
        shown.set("Targets", text)
        shown.set("Rank", rank)
        values, targets = shown.values(), text.split(",")
        chosen = find_targets(model, [target.split(":")[0] for target in targets])
        assert values["chosen"] == chosen, text
        assert values["trains"] == adapter_size(model, targets, rank), text
        counts = {}
        for layer in chosen:
            counts[of[layer][0]] = counts.get(of[layer][0], 0) + 1
        assert values["counts"] == counts
        assert f"{text} chooses {len(chosen)} of {len(of)} matrices" in shown.words()
        assert f"{values['trains']:,} parameters train" in shown.words()


@pytest.mark.parametrize("name", ["the small model", "the 11B"])
def test_target_patterns_refuses_as_the_package(figure, models, name):
    shown, model = figure("target_patterns"), models[name]
    shown.set("In", name)
    for text in BAD:
        with pytest.raises(InputError) as error:
            find_ranks(model, text.split(","), 8)
        shown.set("Targets", text)
        assert shown.values()["chosen"] == [] and shown.values()["refused"], text
        assert shown.words().startswith("Refused: "), text
        for said in ("matches no layer", "matches vision_model", "ends in"):
            assert (said in shown.words()) == (said in str(error.value)), text


def test_target_patterns_reaches_into_vision(figure):
    shown = figure("target_patterns")
    assert shown.values()["counts"] == {
        "vision.local": 4,
        "vision.global": 2,
        "self": 4,
        "cross": 3,
    }
    shown.set("or one of these", "self.q")
    assert shown.control("Targets").input_value() == "self.q"
    assert "4 of 87 matrices: 4 in self-attention." in shown.words()
