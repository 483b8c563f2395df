"""What fine-tuning costs: counted without numbers, with numbers, and measured."""

from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch

import memory as benchmark
from mllama_lite import InputError
from mllama_lite.adapters.cost import Ledger, Rehearsal, peak_of_step, training_cost
from mllama_lite.adapters.lora import adapter_size, add_adapter
from mllama_lite.adapters.training import recomputed
from mllama_lite.decoder import TextConfig
from mllama_lite.local_vision import VisionConfig
from mllama_lite.model import Mllama, MllamaConfig

TINY = MllamaConfig(
    TextConfig(
        vocab_size=2048,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        cross_attention_layers=(1,),
    ),
    VisionConfig(
        hidden_size=32,
        attention_heads=2,
        intermediate_size=64,
        num_hidden_layers=1,
        num_global_layers=1,
        image_size=28,
        intermediate_layers_indices=(0,),
    ),
    image_token_index=2048,
)
ROWS = [(40, 9, (4, 2)), (30, 3, ())]
FLOAT, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def _gradients():
    with torch.enable_grad():
        yield


@pytest.mark.parametrize(
    "dtype, checkpointing", [(FLOAT, True), (BF16, False), (BF16, True)]
)
def test_without_numbers_the_peak_is_that_of_the_real_step(dtype, checkpointing, proof):
    cost = training_cost(TINY, ROWS, ("all",), 4, dtype, checkpointing)
    model = Mllama(TINY).to(dtype)
    adapter = add_adapter(model, ("all",), 4, report=None)
    trainer = Rehearsal(model, ROWS)
    with recomputed(model) if checkpointing else nullcontext():
        real = peak_of_step(trainer)
    how = f"{str(dtype)[6:]}, {'checkpointing' if checkpointing else 'everything kept'}"
    assert abs(cost.total - real) <= 16  # a number or two: those that are asked for
    proof(
        f"Memory of a training step, counted without numbers / with, {how}",
        "a ledger of the real step",
        "2 rows, 2 images, adapters at all layers",
        max(cost.total / real, real / cost.total),
        1.001,
    )
    # The parts, from the tensors themselves.
    averages = [
        value
        for state in trainer.optimiser.state.values()
        for value in state.values()
        if value.dim()
    ]
    trained = {id(p) for p in adapter}
    weights = [p for p in model.parameters() if id(p) not in trained]
    assert cost.weights == sum(p.numel() for p in weights) * dtype.itemsize
    assert cost.adapter == sum(p.numel() for p in adapter) * 4
    assert cost.gradients == sum(p.grad.numel() for p in adapter) * 4
    assert cost.optimiser == sum(value.numel() for value in averages) * 4
    assert cost.adapter + cost.gradients + cost.optimiser == 4 * cost.adapter


def test_a_ledger_counts_what_is_alive_once():
    with Ledger() as ledger:
        x = torch.zeros(100)
        view = x[10:].view(9, 10).t()
        assert ledger.live == ledger.peak == 400
        y = view + 1
        assert ledger.live == 760
        del x, y
        assert ledger.live == 400  # the view keeps all of it
        del view
    assert (ledger.live, ledger.peak) == (0, 760)


@cache
def activations(length, answers=8, tiles=(), checkpointing=False):
    rows = [(length, answers, tiles)]
    return training_cost(TINY, rows, ("self",), 4, FLOAT, checkpointing).activations


def test_more_costs_more_and_recomputing_less():
    kept, recomputed_ = (activations(512, tiles=(4,), checkpointing=c) for c in (0, 1))
    assert recomputed_ < 0.7 * kept
    assert activations(512) < kept < activations(512, tiles=(4, 4))
    assert activations(512) < activations(1024) < activations(1024, 500)


def test_text_costs_the_same_for_every_token():
    # Fused attention keeps nothing of T times T numbers.
    costs = [activations(length) for length in (512, 1024, 2048)]
    assert costs[2] - costs[1] == pytest.approx(2 * (costs[1] - costs[0]), rel=0.01)


def test_a_rank_more_costs_what_is_kept_for_it():
    """Number, gradient and AdamW's averages, which the first step has not yet."""
    model, costs, sizes = Mllama(TINY), [], []
    for rank in (4, 16):
        cost = training_cost(TINY, [(40, 9, ())], ("self", "mlp"), rank, FLOAT)
        costs.append(cost.total)
        sizes.append(adapter_size(model, ("self", "mlp"), rank))
    assert costs[1] - costs[0] >= 16 * (sizes[1] - sizes[0])


@pytest.mark.parametrize(
    "row", [(5, 0, ()), (5, 5, ()), (5, 4, (1,)), (9, 2, (5,)), (9, 2, (0,))]
)
def test_rows_that_no_sample_can_have(row):
    with pytest.raises(InputError, match="The row is"):
        training_cost(TINY, [row], ("self",))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
@pytest.mark.parametrize(
    "dtype, targets, checkpointing, row",
    [
        ("float32", ("self",), False, (192, 16, ())),
        ("float32", ("self", "mlp", "cross"), True, (64, 16, (2,))),
    ],
)
def test_counted_is_what_a_process_needs(dtype, targets, checkpointing, row, proof):
    config, in_torch = benchmark.SIZES["100m"], getattr(torch, dtype)
    cost = training_cost(config, [row], targets, 8, in_torch, checkpointing)
    setting = ("100m", dtype, targets, checkpointing, [row], "cpu")
    ratio = cost.total / benchmark.measured(*setting)
    proof(
        f"Memory of a training step, counted / measured, {' '.join(targets)}",
        "what a process takes",
        f"100 million parameters, {row[0]} tokens, {len(row[2])} images",
        max(ratio, 1 / ratio),
        1.1,
    )
