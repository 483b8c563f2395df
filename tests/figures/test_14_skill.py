"""The figures of chapter 14 against the package and its recorded measurements."""

import json

import pytest

import conftest
import emoji
from mllama_lite.adapters.lora import add_adapter
from mllama_lite.model import MllamaConfig, empty_model
from mllama_lite.small_model.evaluation import interval

MEASURED = conftest.ROOT / "notebooks" / "measured"
PARTS = {"vision": ("vision.local", "vision.global")}  # others are called as targets
TIMES = "If so many times the questions were asked"


def recorded(name):
    return json.loads((MEASURED / name).read_text())


@pytest.fixture(scope="module")
def trained():
    """{"setting, rate": {designer: record}} of skills.json."""
    found = {}
    for r in recorded("skills.json")["train"]:
        found.setdefault(f"{r['setting']}, rate {r['rate']:g}", {})[r["held_out"]] = r
    return found


def names_right(record):
    return round(record["right"] * record["asked"])


def test_two_trainings_has_every_recorded_number(figure, trained):
    assert {
        (r["asked"], r["old_asked"], r["old_before"])
        for records in trained.values()
        for r in records.values()
    } == {(38, 220, 217)}
    wanted = {
        setting: [
            [names_right(records[one]), records[one]["old_right"]]
            if one in records
            else None
            for one in emoji.DESIGNERS
        ]
        for setting, records in trained.items()
    }
    assert figure("two_trainings").values()["recorded"] == wanted


@pytest.mark.parametrize(
    "first, second, times",
    [
        ("all, rank 2, rate 0.008", "full, rate 0.0015", 1),
        ("all, rank 2, rate 0.008", "self, rate 0.008", 1),
        ("full, rate 0.0015", "mixed, 1/2, rate 0.008", 4),
        ("head, rate 0.008", "vision, rate 0.008", 32),
        ("all, rank 8, rate 0.004", "all, rank 8, rate 0.008", 1),
        ("full, rate 0.003", "full, rate 0.006", 2),
        ("all, rank 1, rate 0.008", "all, rank 2, rate 0.008", 1),
    ],
)
def test_two_trainings(figure, trained, first, second, times):
    shown = figure("two_trainings")
    shown.set("First", first)
    shown.set("Second", second)
    shown.set(TIMES, times)
    common = [
        d for d in emoji.DESIGNERS if d in trained[first] and d in trained[second]
    ]
    values, words = shown.values(), shown.words()
    assert values["designers"] == common
    assert f"Held out in turn: {', '.join(common)}." in words

    def intervals(n):
        return [
            interval(
                n * sum(names_right(trained[one][d]) for d in common),
                n * sum(trained[one][d]["asked"] for d in common),
            )
            for one in (first, second)
        ]

    def apart(n):
        (a, b), (c, d) = intervals(n)
        return a > d or c > b

    for one, counted, ends, wanted in zip(
        (first, second), values["counted"], values["intervals"], intervals(times)
    ):
        records = [trained[one][d] for d in common]
        right, asked = map(sum, zip(*((names_right(r), r["asked"]) for r in records)))
        old, old_asked = map(
            sum, zip(*((r["old_right"], r["old_asked"]) for r in records))
        )
        assert counted == {
            "setting": one,
            "right": right,
            "asked": asked,
            "old": old,
            "oldAsked": old_asked,
        }
        assert ends == pytest.approx(wanted, abs=1e-12)
        assert f"{one}: {right} of {asked}" in words
        assert f"({wanted[0]:.2f} to {wanted[1]:.2f})" in words
    enough = next((n for n in range(1, 1001) if apart(n)), None)
    assert values["enough"] == enough
    assert values["apart"] == apart(times)
    if apart(times):
        assert "The intervals lie apart." in words
    elif enough:
        assert f"{enough} times the questions would." in words
    else:
        assert "Nor would a thousand times the questions" in words


@pytest.fixture
def priced(figure):
    """The figure of a card's memory, with the parts that are adapted."""

    def opened(parts, power=3, dtype="bf16"):
        shown = figure("before_the_first_activation")
        for name in ("self", "mlp", "cross", "vision", "projector", "head"):
            shown.set(name, name in parts)
        shown.set("Rank", power)
        shown.set("Weights in", dtype)
        return shown

    return opened


def test_before_the_first_activation_is_what_was_counted(figure):
    values = figure("before_the_first_activation").values()
    for line in recorded("memory.json")["full_size"]:
        for name in ("weights", "adapter", "gradients", "optimiser"):
            assert values[name] == line[name]


@pytest.mark.parametrize(
    "parts, power",
    [
        (["self"], 0),
        (["mlp", "head"], 8),
        (["cross", "projector"], 5),
        (["vision"], 4),
        (["self", "mlp", "cross", "vision", "projector", "head"], 7),
    ],
)
def test_before_the_first_activation(priced, parts, power):
    model = empty_model(MllamaConfig())
    weights = sum(p.numel() for p in model.parameters())
    targets = [target for name in parts for target in PARTS.get(name, [name])]
    adapter = add_adapter(model, targets, 2**power, report=None)
    size = 4 * sum(p.numel() for p in adapter)
    for dtype, itemsize in (("bf16", 2), ("fp32", 4)):
        shown = priced(parts, power, dtype)
        values = shown.values()
        left = values.pop("left")
        assert values == {
            "weights": itemsize * weights,
            "adapter": size,
            "gradients": size,
            "optimiser": 2 * size,
        }
        whole = (itemsize * weights + 4 * size) / 2**30
        assert left == pytest.approx(
            {
                "L4": 0.95 * 23034 / 1024 - whole,
                "RTX 4090": 0.95 * 24564 / 1024 - whole,
                "L40S": 0.95 * 46068 / 1024 - whole,
                "H100": 0.95 * 81559 / 1024 - whole,
            }
        )
        words = shown.words()
        assert f"Rank {2**power} at {', '.join(parts)}: " in words
        assert f": {whole:.2f} GiB." in words
        fits = next(card for card in left if left[card] > 0)
        assert f"the {fits}, with {left[fits]:.1f} GiB left for activations" in words


def test_before_the_first_activation_of_what_fits_no_card(priced):
    shown = priced(["self"])
    shown.set("Train every number instead", True)
    values = shown.values()
    del values["left"]
    numbers = sum(p.numel() for p in empty_model(MllamaConfig()).parameters())
    assert sum(values.values()) == 16 * numbers
    assert "No card here has room for that" in shown.words()
    shown.set("Train every number instead", False)
    shown.set("self", False)
    assert "Nothing is adapted: 19.87 GiB of weights and 0.00 GiB" in shown.words()
