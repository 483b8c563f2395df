"""The figures of chapter 12 against the package and numpy."""

import numpy as np
import pytest

from mllama_lite.adapters.lora import adapter_size
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
