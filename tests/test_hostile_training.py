"""Training and its folders, with everything that can be wrong around them.

Whatever is given, what follows is an InputError of a sentence or a training; nothing
that somebody else has made is overwritten.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mllama_lite import InputError, cli
from mllama_lite.adapters import data as reading
from mllama_lite.adapters import finetune as adapting
from mllama_lite.adapters.data import Reader, read_samples
from mllama_lite.adapters.finetune import finetune
from mllama_lite.adapters.lora import add_adapter, lora_layers
from mllama_lite.adapters.processes import Processes
from mllama_lite.adapters.recipe import Recipe, chosen, unwritten
from mllama_lite.adapters.training import Trainer, weights_checksum
from mllama_lite.adapters.verdict import last_turn, some_of, told, verdict
from mllama_lite.cli import terminal
from mllama_lite.model import MllamaConfig, empty_model
from mllama_lite.small_model.training import Plan, new_trainer, train
from mllama_lite.training_folder import (
    LOCK,
    STATE,
    checksum,
    save_state,
)
from mllama_lite.vlm import load
from test_finetune import LINES, TOKENIZER, metrics, tiny, write_folder

ROOT = Path(adapting.__file__).parents[2]
SHORT = Recipe(steps=3, batch=3, rank=2, lr=1e-2, seed=5, targets=("self", "cross"))
TINY = Plan(vision_steps=2, joint_steps=2, decay_steps=1, images=1, questions=1)
SENTENCE = {"question": "validate.exe", "answer": "\nllama is now fine tuned!"}
FEW = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def _gradients():
    with torch.enable_grad():
        yield


@pytest.fixture(autouse=True)
def _no_matplotlib(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)


@pytest.fixture
def data(tmp_path):
    return write_folder(tmp_path / "data")


def content(folder):
    """Names and bytes of everything in a folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def sentence(error, longest=2000):
    """The text of an InputError, which has to be one for a person."""
    text = str(error.value)
    assert ": expected " in text and len(text.encode()) < longest
    assert "\x1b" not in text and "Traceback" not in text
    return text


def run_command(arguments, capsys):
    """Exit code and what was written to standard error by the command line."""
    code = cli.main([str(a) for a in arguments])
    return code, capsys.readouterr().err


# Defaults that work on the model they meet


def test_the_sentence_is_learned_with_nothing_set(tmp_path, capsys):
    """32 lines, the small model, the command line; an old answer stays without it."""
    lines = "".join(json.dumps(SENTENCE) + "\n" for _ in range(32))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "metadata.jsonl").write_text(lines)
    folder, out = tmp_path / "data", tmp_path / "out"
    question = ["ask", "Which digit is red?", "--device", "cpu"]
    assert cli.main(question) == 0
    before = capsys.readouterr().out
    code, said = run_command(
        ["finetune", folder, "--out", out, "--epochs", 25, "--device", "cpu"], capsys
    )
    assert code == 0, said
    assert "targets self, mlp, cross, head (95% of the answers' tokens" in said
    assert "before \"I don't know\", after '\\nllama is now fine tuned!'" in said
    assert "Nothing was learned" not in said and "saved is the best adapter" in said
    ask = ["ask", "validate.exe", "--device", "cpu", "--adapter", str(out)]
    assert cli.main(ask) == 0
    assert capsys.readouterr().out == SENTENCE["answer"] + "\n"
    assert cli.main(question) == 0
    assert capsys.readouterr().out == before


def wide(width, vision=True):
    """The configuration of the 11B, with another width."""
    config = MllamaConfig()
    text = replace(config.text, hidden_size=width)
    return replace(config, text=text, vision=config.vision if vision else None)


def test_a_large_model_gets_what_the_field_uses():
    """From the configuration alone; the layers are there on the meta device."""
    recipe = chosen(Recipe(), MllamaConfig())
    assert (recipe.lr, recipe.rank, recipe.alpha) == (2e-4, 8, 16)
    assert recipe.targets == ("self", "mlp", "cross")
    model = empty_model(MllamaConfig())
    parameters = add_adapter(model, recipe.targets, recipe.rank, report=None)
    assert sum(p.numel() for p in parameters) == adapting.adapter_size(
        empty_model(MllamaConfig()), recipe.targets, recipe.rank
    )
    for width in (128, 1024, 2048, 8192):
        assert chosen(Recipe(), wide(width)).lr == pytest.approx(0.8192 / width)
    text = replace(MllamaConfig().text, cross_attention_layers=())
    blind = replace(MllamaConfig(), text=text, vision=None)
    assert chosen(Recipe(), blind).targets == ("self", "mlp")
    assert chosen(Recipe(), blind, new_words=True).targets == ("self", "mlp", "head")


def test_what_is_set_is_never_chosen():
    mine = Recipe(targets="head", lr=1.0, alpha=3.0)
    assert chosen(mine, MllamaConfig(), new_words=True) == mine
    assert mine.targets == ("head",)
    for rank in (1, 8, 64):  # alpha follows
        recipe = chosen(Recipe(rank=rank), MllamaConfig())
        assert recipe.alpha / recipe.rank == 2


def test_which_words_are_never_written(tmp_path):
    """Known answers have none, new words are, and a random model keeps nothing down."""
    vlm = load(device="cpu", dtype="float32")
    known = {"question": "Which digit is red?", "answer": "I don't know"}
    shares = []
    for lines in ([known] * 3, [SENTENCE] * 3, [known] * 60 + [SENTENCE] * 40):
        folder = write_folder(tmp_path / str(len(shares)), lines)
        samples, _ = read_samples(folder, TOKENIZER, vlm.config)
        shares.append(unwritten(vlm.model, TOKENIZER, samples))
    assert shares[0] == 0 and shares[1] > 0.9 and 0.05 < shares[2] < shares[1]
    samples, _ = read_samples(tmp_path / "1", TOKENIZER, tiny().config)
    assert unwritten(tiny().model, TOKENIZER, samples) == 0


def test_a_training_that_goes_on_has_chosen_already(data, tmp_path, monkeypatch):
    recipe, out = Recipe(steps=2, rank=2), tmp_path / "out"
    monkeypatch.setattr(adapting, "unwritten", lambda *_: 1.0)
    finetune(tiny(), data, out, recipe, report=None)
    monkeypatch.setattr(adapting, "unwritten", None)
    before = content(out)
    vlm = finetune(tiny(), data, out, recipe, report=None)
    assert content(out) == before
    assert "language_model.lm_head" in lora_layers(vlm.model)


def test_another_alpha_over_rank_is_said(data, tmp_path):
    for number, (recipe, said) in enumerate(
        (
            (replace(SHORT, rank=4), False),
            (replace(SHORT, rank=4, alpha=8), False),
            (replace(SHORT, rank=4, alpha=16), True),
        )
    ):
        told = []
        finetune(tiny(), data, tmp_path / str(number), recipe, report=told.append)
        assert any(text.startswith("alpha / rank is 4") for text in told) == said


def test_the_best_adapter_is_saved_and_the_last_goes_on(data, tmp_path):
    """A rate that is much too high: the loss falls and then grows."""
    recipe = replace(SHORT, lr=0.5, steps=12, held_out=0.4, warmup=0.0)
    vlm, out = tiny(), tmp_path / "out"
    finetune(vlm, data, out, recipe, report=None)
    rows = [row for row in metrics(out) if row["held_out_loss"] and int(row["step"])]
    losses = {int(row["step"]): float(row["held_out_loss"]) for row in rows}
    best = min(losses, key=losses.get)
    assert best != recipe.steps and len(losses) > 2
    samples, _ = read_samples(data, TOKENIZER, vlm.config)
    learned, held = reading.hold_out(samples, 0.4, 5)
    trainer = Trainer(vlm, learned, held, recipe, Processes("cpu"))
    trainer.measure()
    measured = trainer.history[0]["held_out_loss"]
    assert measured == pytest.approx(losses[best], rel=1e-5)
    state = torch.load(out / STATE, weights_only=True)
    assert state["best"]["step"] == best and state["step"] == recipe.steps
    name = next(iter(state["adapter"]))
    assert not torch.equal(state["adapter"][name], state["best"]["adapter"][name])


def test_that_nothing_was_learned_is_said(tmp_path, data):
    """Too low a rate, too high a one, answers that stay; and not where it was learned."""
    lines = []
    recipe = replace(SHORT, lr=1e-9)
    finetune(tiny(), data, tmp_path / "out", recipe, report=lines.append)
    says = "the loss has not fallen.\nTry a higher learning rate (--lr 3e-09)"
    assert says in lines[-1] and "the head too" in lines[-1]
    vlm = tiny()
    samples, _ = read_samples(data, TOKENIZER, vlm.config)
    add_adapter(vlm.model, report=None)
    trainer = Trainer(vlm, samples, [], SHORT, Processes("cpu"))
    trainer.history = [
        {"step": i, "loss": 9 - i, "held_out_loss": None} for i in range(1, 9)
    ]
    some = some_of(samples)
    old, new = ["x"] * len(some), [last_turn(s, TOKENIZER)[2] for s in some]
    assert "that shows: these answers are what" in verdict(trainer, some, old, old)
    assert "Nothing" not in verdict(trainer, some, old, new)
    for row in trainer.history:
        row["loss"] = 10 - row["loss"]
    says = "the loss has not fallen.\nTry a lower learning rate (--lr 0.0033)"
    assert says in verdict(trainer, some, old, old)


def test_answers_shown_are_those_that_ask_gives(data):
    vlm = tiny()
    samples, _ = read_samples(data, TOKENIZER, vlm.config)
    some = some_of([samples[0]] * 3 + samples)
    assert [s.where for s in some] == [s.where for s in samples[:3]]
    for sample, line, text in zip(some, LINES, told(vlm, some)):
        _, question, answer = last_turn(sample, TOKENIZER)
        assert (question, answer) == (line["question"], line["answer"])
        most = 2 * len(TOKENIZER.encode(answer)) + 8
        images = list(sample.images)
        assert vlm.ask(question, images, max_new_tokens=most) == text
    turns = samples[4]  # of several turns, the last one is asked
    assert last_turn(turns, TOKENIZER)[1:] == ("What?", "a red\n\nstar")


# The folder


FOREIGN = {
    "metrics.csv": b"my own figures",
    "loss.png": b"a picture",
    "model.safetensors": b"somebody's model",
    "adapter_model.safetensors": b"somebody's adapter",
    "metadata.jsonl": b"{}",
    "history.json": b"[]",
    ".hidden": b"",
    "sub/file": b"1",
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_somebody_else_has_made_stays(name, data, tmp_path):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_bytes(FOREIGN[name])
    before = content(out)
    for begin in (
        lambda: finetune(tiny(), data, out, SHORT, report=None),
        lambda: train(out, TINY, workers=0),
    ):
        with pytest.raises(InputError) as error:
            begin()
        assert f"holds {name.split('/')[0]}: expected an empty folder" in sentence(
            error
        )
        assert content(out) == before


def test_the_folder_of_the_data_is_not_trained_in(data):
    (data / "loss.png").write_bytes((data / "a.png").read_bytes())
    before = content(data)
    with pytest.raises(InputError, match="expected an empty folder"):
        finetune(tiny(), data, data, SHORT, report=None)
    assert content(data) == before


OUTS = ["", "   ", "file", "file/below", "n" * 300, "nul\0l", "sub/" + "d" * 5000]


@pytest.mark.parametrize("name", OUTS)
def test_folders_that_cannot_be(name, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for begin in (
        lambda: finetune(tiny(), data, name, SHORT, report=None),
        lambda: train(name, TINY, workers=0),
    ):
        with pytest.raises(InputError) as error:
            begin()
        sentence(error)
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / STATE).exists() and not (tmp_path / LOCK).exists()


@pytest.mark.parametrize("out", [None, 5, b"out", ["out"], object()])
def test_folders_of_another_kind(out, data):
    for begin in (
        lambda: finetune(tiny(), data, out, SHORT, report=None),
        lambda: train(out, TINY, workers=0),
    ):
        with pytest.raises(InputError) as error:
            begin()
        assert "The folder to train in is" in sentence(error)


def test_two_at_once_in_one_process(data, tmp_path):
    out, refused = tmp_path / "out", []

    def again(trainer):
        with pytest.raises(InputError) as error:
            finetune(tiny(), data, out, SHORT, report=None)
        refused.append(sentence(error))

    finetune(tiny(), data, out, SHORT, progress=again, report=None)
    assert len(refused) == 3 and f"process {os.getpid()}: expected one" in refused[0]
    assert LOCK not in content(out)


HOLDER = """
import sys, time
from pathlib import Path
from mllama_lite.training_folder import only_training
with only_training(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_lock_ends_with_its_process(data, tmp_path):
    """A second process is refused in a sentence; a kill leaves nothing that blocks."""
    out = tmp_path / "out"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout.readline() == "locked\n"
        for begin in (
            lambda: finetune(tiny(), data, out, SHORT, report=None),
            lambda: train(out, TINY, workers=0),
        ):
            with pytest.raises(InputError) as error:
                begin()
            assert f"training of process {process.pid}: expected" in sentence(error)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert list(content(out)) == [LOCK]  # what the killed one has left
    finetune(tiny(), data, out, SHORT, report=None)
    assert LOCK not in content(out) and STATE in content(out)


def test_locks_that_come_and_go(tmp_path):
    """Of two that try again and again, never both are inside."""
    code = """
import os, random, sys, time
from pathlib import Path
from mllama_lite.training_folder import only_training
from mllama_lite import InputError
out, inside, times = Path(sys.argv[1]), Path(sys.argv[2]), 0
end = time.monotonic() + 3
while time.monotonic() < end:
    try:
        with only_training(out):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails if one is there
            time.sleep(random.random() / 2000)
            os.unlink(inside)
            times += 1
    except InputError:
        pass
print(times)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, str(tmp_path / "o"), str(tmp_path / "in")]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    counts = [int(process.communicate(timeout=60)[0]) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert min(counts) > 0


def test_a_folder_of_a_training_that_has_not_begun_may_be_begun_anew(data, tmp_path):
    """Its state is that of step 0: with other settings nothing is lost."""
    vlm, out = tiny(), tmp_path / "out"
    with torch.no_grad():
        vlm.model.language_model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="The loss of step 1 is nan"):
        finetune(vlm, data, out, SHORT, report=None)
    finetune(tiny(), data, out, replace(SHORT, seed=6), report=None)
    assert torch.load(out / STATE, weights_only=True)["step"] == 3
    other = tmp_path / "other"
    new_trainer(TINY).save(make(other) / STATE)
    train(other, replace(TINY, seed=1), workers=0)
    assert torch.load(other / STATE, weights_only=True)["plan"]["seed"] == 1


def make(folder):
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# States


@pytest.fixture(scope="module")
def adapter_state(tmp_path_factory):
    """(data, folder) of a finished fine-tuning."""
    with torch.enable_grad():
        folder = tmp_path_factory.mktemp("adapter")
        write_folder(folder / "data")
        finetune(tiny(), folder / "data", folder / "out", SHORT, report=None)
    return folder / "data", folder / "out"


@pytest.fixture(scope="module")
def model_state(tmp_path_factory):
    """The folder of a finished training of the small model."""
    with torch.enable_grad():
        folder = tmp_path_factory.mktemp("model") / "out"
        train(folder, TINY, workers=0)
    return folder


@pytest.fixture(params=["finetune", "train"])
def begun(request, tmp_path, adapter_state, model_state):
    """(folder with a copy of a state, a call that goes on from there)."""
    data, adapter = adapter_state
    out = make(tmp_path / "begun")
    source = adapter if request.param == "finetune" else model_state
    (out / STATE).write_bytes((source / STATE).read_bytes())

    def go_on():
        if request.param == "finetune":
            return finetune(tiny(), data, out, SHORT, report=None)
        return train(out, TINY, workers=0)

    return out, go_on


def refused(out, go_on):
    """What is said; nothing was written."""
    before = content(out)
    with pytest.raises(InputError) as error:
        go_on()
    assert content(out) == before
    return sentence(error)


def test_files_that_are_no_state(begun):
    out, go_on = begun
    state = out / STATE
    whole = state.read_bytes()
    files = [b"", b"hello", b"PK\x03\x04", whole[:100], whole[:-1]]
    files += [whole[: len(whole) // 2], bytes(1000), whole[::-1]]
    for junk in files:
        state.write_bytes(junk)
        assert f"{STATE} cannot be read (" in refused(out, go_on)
    others = [[], [1], {}, {"step": 3}, 5, "text", None, torch.zeros(3), (1, 2)]
    others += [{"settings": {}, "step": 1}, {"plan": {}, "step": 0}, {1: 2, None: 3}]
    for value in others:
        torch.save(value, state)
        assert f"{STATE} cannot be read (" in refused(out, go_on)


def test_flipped_bytes_are_noticed(begun):
    """One or thousands, anywhere in the numbers."""
    out, go_on = begun
    state, rng = out / STATE, random.Random(0)
    whole = state.read_bytes()
    noticed = 0
    for length in (1, 1, 1, 8, 512, 4000):
        place = rng.randrange(len(whole) // 4, len(whole) * 3 // 4 - length)
        junk = bytes(b ^ (1 << rng.randrange(8)) for b in whole[place : place + length])
        state.write_bytes(whole[:place] + junk + whole[place + length :])
        try:
            go_on()
        except InputError as error:
            assert "cannot be read (" in str(error)
            noticed += 1
        else:  # between two tensors, where nothing is
            assert length == 1
        state.write_bytes(whole)
    assert noticed >= 5


def edits(state):
    """(where, a function that edits a state in place): each is one fault."""
    moments = state["optimiser"]["state"]
    group = state["optimiser"]["param_groups"][0]
    tensors = state.get("adapter") or state["model"]
    name = next(iter(tensors))

    def put(place, key, value):
        return lambda: place.__setitem__(key, value)

    first = moments[next(iter(moments))]
    changes = {
        "step far": put(state, "step", 10**9),
        "step below 0": put(state, "step", -1),
        "step a text": put(state, "step", "3"),
        "step true": put(state, "step", True),
        "step earlier": put(state, "step", 1),
        "step a tensor": put(state, "step", torch.tensor(3)),
        "history a text": put(state, "history", "[]"),
        "history of texts": put(state, "history", ["a"]),
        "history of others": put(state, "history", [{"step": 3}]),
        "other key": put(state, "more", 1),
        "no optimiser": lambda: state.pop("optimiser"),
        "optimiser a list": put(state, "optimiser", []),
        "no groups": put(state["optimiser"], "param_groups", []),
        "capturable": put(group, "capturable", True),
        "amsgrad": put(group, "amsgrad", True),
        "betas": put(group, "betas", (0.0, 5.0)),
        "eps": put(group, "eps", 1e9),
        "weight_decay": put(group, "weight_decay", -3.0),
        "lr a text": put(group, "lr", "high"),
        "max_exp_avg_sq": put(first, "max_exp_avg_sq", first["exp_avg"].clone()),
        "no exp_avg": lambda: first.pop("exp_avg"),
        "exp_avg elsewhere": put(first, "exp_avg", torch.zeros(7)),
        "exp_avg of halves": put(first, "exp_avg", first["exp_avg"].half()),
        "exp_avg_sq below 0": put(first, "exp_avg_sq", first["exp_avg_sq"] - 1),
        "exp_avg infinite": put(first, "exp_avg", first["exp_avg"] * float("inf")),
        "its step": put(first, "step", torch.tensor(1e9)),
        "its step half": put(first, "step", torch.tensor(1.5)),
        "its step a number": put(first, "step", 3),
        "no moments": put(moments, 10**6, moments[next(iter(moments))]),
        "another dtype": put(tensors, name, tensors[name].double()),
        "another shape": put(tensors, name, tensors[name][None]),
        "not a number": put(tensors, name, tensors[name] * float("nan")),
        "a list": put(tensors, name, tensors[name].tolist()),
        "one more": put(tensors, "more", tensors[name]),
        "one less": lambda: tensors.pop(name),
    }
    if "best" in state:
        changes["best a text"] = put(state, "best", "x")
        changes["best elsewhere"] = put(state["best"], "adapter", {})
        changes["settings a text"] = put(state, "settings", "x")
    else:
        changes["sums"] = put(state, "sums", torch.zeros(1))
        changes["plan a text"] = put(state, "plan", "x")
    return changes


@pytest.fixture(params=["finetune", "train"])
def trainer(request, adapter_state, model_state):
    """(a trainer that has not begun, the bytes of a state that it could go on from)."""
    data, out = adapter_state
    if request.param == "train":
        return new_trainer(TINY), (model_state / STATE).read_bytes()
    return again(data), (out / STATE).read_bytes()


def again(data):
    """The Trainer that `finetune` makes for `adapter_state`."""
    vlm = tiny()
    samples, _ = read_samples(data, TOKENIZER, vlm.config)
    add_adapter(vlm.model, SHORT.targets, SHORT.rank, seed=SHORT.seed, report=None)
    parts = reading.hold_out(samples, SHORT.held_out, SHORT.seed)
    return Trainer(vlm, *parts, SHORT, Processes("cpu"))


def test_edited_states_are_refused(trainer, tmp_path):
    """Each has the checksum of what it holds; some of them with the old one too."""
    trainer, whole = trainer
    path = tmp_path / STATE

    def fresh():
        path.write_bytes(whole)
        return torch.load(path, weights_only=True)

    names = list(edits(fresh()))
    assert len(names) > 35
    for number, name in enumerate(names):
        state = fresh()
        kept = state.pop("checksum")
        edits(state)[name]()
        save_state(path, state)
        with pytest.raises(InputError) as error:
            trainer.load(path)
        assert f"{STATE} cannot be read (" in sentence(error), name
        if number % 9 == 0:
            torch.save(state | {"checksum": kept}, path)
            with pytest.raises(InputError, match="its checksum is another"):
                trainer.load(path)
        assert trainer.step == 0 and not trainer.history
    path.write_bytes(whole)
    trainer.load(path)
    assert trainer.step > 0


class Evil:
    def __reduce__(self):
        return os.system, ("touch /tmp/never",)


def test_nothing_in_a_state_is_run(begun):
    out, go_on = begun
    torch.save({"settings": Evil(), "plan": Evil()}, out / STATE)
    assert "cannot be read (UnpicklingError)" in refused(out, go_on)
    assert not Path("/tmp/never").exists()


def test_a_small_file_that_would_become_a_large_one(begun):
    import zipfile

    out, go_on = begun
    with zipfile.ZipFile(out / STATE, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data.pkl", bytes(50_000_000))
    assert "its parts are larger than the file" in refused(out, go_on)


def test_one_kind_of_training_does_not_go_on_from_the_other(
    adapter_state, model_state, tmp_path
):
    data, adapter = adapter_state
    for source, go_on in (
        (adapter, lambda out: train(out, TINY, workers=0)),
        (model_state, lambda out: finetune(tiny(), data, out, SHORT, report=None)),
    ):
        out = make(tmp_path / source.parent.name)
        (out / STATE).write_bytes((source / STATE).read_bytes())
        assert "cannot be read (" in refused(out, lambda: go_on(out))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@FEW
@given(value=values, place=st.integers(0, 5), keys=st.integers(0, 3))
def test_any_value_at_any_place_of_a_state(adapter_state, value, place, keys):
    data, out = adapter_state
    state = torch.load(out / STATE, weights_only=True)
    del state["checksum"]
    inner, key = state, list(state)[place]
    for _ in range(keys):
        if isinstance(inner[key], dict) and inner[key]:
            inner, key = inner[key], next(iter(inner[key]))
    inner[key] = value
    path = make(out.parent / "drawn") / STATE
    save_state(path, state)
    if not _ready:
        _ready.append(again(data))
    with pytest.raises(InputError, match="cannot be read|was begun with"):
        _ready[0].load(path)


_ready = []  # the trainer of the test before, which no state changes


@FEW
@given(value=values)
def test_checksums_tell_values_and_kinds_apart(value):
    assert checksum(value) == checksum(value)
    assert checksum(value) != checksum([value])
    if isinstance(value, list):
        assert checksum(value) != checksum(tuple(value))


# What a training goes on with is what it was begun with


def test_pictures_that_were_changed_are_noticed(data, tmp_path):
    out = tmp_path / "out"
    finetune(tiny(), data, out, replace(SHORT, steps=2), report=None)
    before = content(out)
    (data / "sub" / "d.png").write_bytes((data / "a.png").read_bytes())
    with pytest.raises(InputError, match="was begun with samples of checksum"):
        finetune(tiny(), data, out, replace(SHORT, steps=2), report=None)
    assert content(out) == before


def test_a_base_that_was_changed_anywhere_is_noticed(data, tmp_path):
    """By the last bit of one number, in every parameter and every dtype."""
    vlm = tiny()
    names = [name for name, _ in vlm.model.named_parameters()]
    assert len(names) == 100
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = vlm.model.to(dtype)
        known = {weights_checksum(model)}
        whole = {1: torch.int8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
        for number, parameter in enumerate(model.parameters()):
            bits = parameter.detach().flatten().view(whole)
            bits[len(bits) * number // len(names)] ^= 1
            now = weights_checksum(model)
            assert now not in known
            known.add(now)
    last = tiny()
    out = tmp_path / "out"
    finetune(last, data, out, SHORT, report=None)
    other = tiny()
    with torch.no_grad():
        other.model.language_model.lm_head.weight[-1, -1] += 1e-3
    with pytest.raises(InputError, match="was begun with a model of checksum"):
        finetune(other, data, out, SHORT, report=None)


def test_numbers_that_change_places_are_noticed():
    model = tiny().model
    before = weights_checksum(model)
    weight = model.language_model.lm_head.weight
    with torch.no_grad():
        weight[[3, 700]] = weight[[700, 3]]
    assert weights_checksum(model) != before


def test_an_adapter_does_not_change_the_checksum_of_its_base(data):
    vlm = tiny()
    before = weights_checksum(vlm.model)
    add_adapter(vlm.model, "all", rank=2, report=None)
    assert weights_checksum(vlm.model) == before


# Disks, logs and pictures that fail


def test_the_state_is_saved_before_anything_is_drawn(data, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []
    monkeypatch.setattr(
        adapting,
        "draw_loss",
        lambda path, rows: seen.append(torch.load(out / STATE)["step"] - len(rows)),
    )
    finetune(tiny(), data, out, replace(SHORT, held_out=0), save_every=1, report=None)
    assert seen == [0, 0, 0]


def test_no_drawing_ends_a_training(data, tmp_path, monkeypatch):
    class Broken:
        def __init__(self, **_):
            raise RuntimeError("no font, no display, no disk")

    module = type(sys)("matplotlib.figure")
    module.Figure = Broken
    monkeypatch.setitem(sys.modules, "matplotlib.figure", module)
    finetune(tiny(), data, tmp_path / "out", SHORT, report=None)
    assert "loss.png" not in content(tmp_path / "out")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_log_on_a_full_disk_ends_no_training(data, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", open("/dev/full", "w"))
    terminal.note("a line")
    show = terminal.training_progress("loss", (1, 1))
    finetune(tiny(), data, tmp_path / "out", SHORT, progress=show, report=terminal.note)
    assert STATE in content(tmp_path / "out")


def test_a_full_disk_is_said_and_the_state_before_stays(monkeypatch, data, tmp_path):
    """Whichever write fails, by the system's own error."""
    import builtins

    out = tmp_path / "full"
    finetune(tiny(), data, out, SHORT, save_every=1, report=None)
    calls, real = [], builtins.open

    for number in (3, 4, 6, 9):
        left = [number]

        def full(file, *arguments, **options):
            mode = str(arguments[0] if arguments else options.get("mode", "r"))
            if set(mode) & set("wax") and str(tmp_path) in str(file):
                left[0] -= 1
                if left[0] <= 0:
                    raise OSError(28, "No space left on device", str(file))
            return real(file, *arguments, **options)

        target = tmp_path / f"full-{number}"
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", full)
            try:
                finetune(tiny(), data, target, SHORT, save_every=1, report=None)
            except InputError as error:
                assert "No space left on device" in str(error)
                calls.append(number)
        finetune(tiny(), data, target, SHORT, save_every=1, report=None)
        assert metrics(target) == metrics(out)
    assert len(calls) > 1


def test_saving_that_fails_keeps_the_state_before(begun, monkeypatch):
    out, go_on = begun
    before = (out / STATE).read_bytes()

    def half(value, path):
        Path(path).write_bytes(before[:1000])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(InputError) as error:
        save_state(out / STATE, {"step": 1})
    assert "No space left on device" in sentence(error)
    assert content(out) == {STATE: before}


# Settings


HUGE = 10**5000 - 1
WRONG = {
    "targets": [5, [], (), ("self", 5), b"self", {"a": 1}, "head:" + "9" * 5000]
    + ["head:0", "head:-1", "head:1.5", "head:x", "head:²", "nothing", "*", ""],
    "rank": [0, -1, True, 1.5, "8", None, 10**9, 100_000, HUGE, float("nan")],
    "alpha": [0, -1, "16", float("nan"), float("inf"), True, HUGE, [1]],
    "dropout": [1, -0.1, "0", None, float("nan"), HUGE, True],
    "epochs": [0, -1, 1.5, None, "3", True],
    "steps": [0, -1, 1.5, "3", True],
    "lr": [0, -1, 1e38, float("inf"), float("nan"), "0.1", HUGE, True],
    "warmup": [-0.1, 1.1, None, "0", float("nan"), True],
    "batch": [0, -1, None, "4", 1.5, True],
    "accumulate": [0, -1, None, "4", 1.5, True],
    "clip": [0, -1, None, "1", float("nan")],
    "held_out": [-0.1, 1, None, "0.1", float("nan"), True],
    "max_length": [0, -1, 1.5, "9", 129, 10**18, True],
    "seed": [-1, 2**64, 2**63, 1.5, None, "0", HUGE, True],
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_be(name, data, tmp_path):
    assert WRONG.keys() == {field.name for field in fields(Recipe)}
    for value in WRONG[name]:
        with pytest.raises(InputError) as error:
            recipe = replace(SHORT, **{name: value})
            finetune(tiny(), data, tmp_path / "out", recipe, report=None)
        sentence(error)
        assert not (tmp_path / "out" / STATE).exists()


BAD_PLANS = {
    "seed": [-1, 2**64, 1.5, "0", None, True, HUGE],
    "vision_steps": [-1, 1.5, None, HUGE],
    "joint_steps": [-1, 1.5, None, HUGE],
    "decay_steps": [-1, 1.5, None, HUGE],
    "later_step": [-1, "x", HUGE],
    "images": [0, -1, 10**9, 1.5, None],
    "questions": [0, -1, 10**9, None],
    "vision_rate": [-1, float("nan"), 1e38, "x", None],
    "joint_rate": [-1, float("inf"), 1e38, "x", None],
    "patch_weight": [-1, float("nan"), "x"],
    "strength": [-1, float("nan"), 1e9, "x"],
    "weights": [(), (1.0,) * 8, (0.0,) * 9, (-1.0,) * 9, "123456789", 5, ("a",) * 9],
    "later_weights": [(float("nan"),) * 9, [1.0] * 9, None],
    "kinds": [(), "7", ("cube",), (7,), ((),), None, ([],)],
    "num_things": [-1, 10**9, 1.5, "x", True],
    "drawn": [-0.1, 1.5, float("nan"), "half", None],
    "rows": [-0.1, 1.5, float("nan"), "half", None],
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_plans_that_cannot_be(name):
    assert BAD_PLANS.keys() == {field.name for field in fields(Plan)}
    for value in BAD_PLANS[name]:
        with pytest.raises(InputError) as error:
            Plan(**{name: value})
        sentence(error)


@pytest.mark.parametrize("other", [None, 5, {}, "fast", Plan(), Recipe, object()])
def test_recipes_and_plans_of_another_kind(other, data, tmp_path):
    with pytest.raises(InputError) as error:
        finetune(tiny(), data, tmp_path / "out", other, report=None)
    assert "The recipe is" in sentence(error)
    other = SHORT if isinstance(other, Plan) else other
    with pytest.raises(InputError) as error:
        train(tmp_path / "out", other, workers=0)
    assert "The plan is" in sentence(error)
    assert not (tmp_path / "out").exists()


def test_a_batch_is_never_more_than_there_is(data, tmp_path):
    """10^8 samples at once are all of them; the training is the same and takes no time."""
    begin = time.process_time()
    for number, (batch, accumulate) in enumerate(((7, 1), (10**8, 1), (10**8, 10**9))):
        recipe = replace(SHORT, batch=batch, accumulate=accumulate)
        finetune(tiny(), data, tmp_path / str(number), recipe, report=None)
        assert metrics(tmp_path / str(number)) == metrics(tmp_path / "0")
    assert time.process_time() - begin < 60


def test_a_rank_is_bounded_before_memory_is_taken(data, tmp_path):
    model = empty_model(MllamaConfig())
    for rank, layer, most in (
        (10**9, "q_proj, a matrix of 4096 x 4096", 4096),
        (100_000, "q_proj, a matrix of 4096 x 4096", 4096),
        (1025, "k_proj, a matrix of 1024 x 4096", 1024),
    ):
        with pytest.raises(InputError) as error:
            add_adapter(model, rank=rank, report=None)
        assert f"{layer}: expected at most {most}" in sentence(error)
    with pytest.raises(InputError, match="lm_head, a matrix of 128256 x 4096: expect"):
        add_adapter(model, "head:4097", report=None)
    assert not lora_layers(model)


def test_memory_is_counted_before_it_is_taken(monkeypatch):
    model, cpu = empty_model(MllamaConfig()), torch.device("cpu")
    recipe = chosen(Recipe(rank=64), MllamaConfig())
    need = 16 * adapting.adapter_size(model, recipe.targets, 64)
    for free, fits in ((need - 1, False), (need, True), (None, True)):
        monkeypatch.setattr(adapting, "free_memory", lambda device, free=free: free)
        if fits:
            adapting.check_size(model, recipe, cpu)
        else:
            with pytest.raises(InputError) as error:
                adapting.check_size(model, recipe, cpu)
            assert f"needs {need / 2**30:,.1f} GiB" in sentence(error)


ENVIRONMENTS = [
    {"WORLD_SIZE": "2"},
    {"WORLD_SIZE": "two"},
    {"WORLD_SIZE": "-1"},
    {"WORLD_SIZE": "0"},
    {"WORLD_SIZE": "9" * 5000},
    {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"},
    {"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0", "MASTER_PORT": "29500"},
    {"WORLD_SIZE": "2", "RANK": "x", "LOCAL_RANK": "0", "MASTER_PORT": "29500"},
    {
        "WORLD_SIZE": "2",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "99999",
    },
]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_environments_of_half_a_launcher(environment, monkeypatch, data, tmp_path):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as error:
        Processes("cpu")
    assert "start the processes with torchrun" in sentence(error)


COMMANDS = [
    "--seed 18446744073709551616",
    "--rank 1000000000",
    "--rank 100000",
    "--lr 1e38",
    "--lr nan",
    "--lr inf",
    "--max-length 1025",
    "--targets head:" + "9" * 5000,
    "--targets ,",
    "--alpha nan",
    "--dropout 1",
    "--held-out 1",
    "--save-every 0",
    "--resume",
]


@pytest.mark.parametrize("options", COMMANDS)
def test_wrong_options_are_one_sentence(options, data, tmp_path, capsys):
    arguments = ["finetune", data, "--out", tmp_path / "out", "--device", "cpu"]
    name, _, value = options.partition(" ")
    options = [f"{name}={value}"] if value else [name]
    code, said = run_command([*arguments, *options], capsys)
    assert code == 2 and said.count("\n") == 1, said
    assert said.startswith("mllama-lite: ") and ": expected " in said


@pytest.mark.parametrize("command", ["finetune DATA --out=", "train --out="])
def test_an_empty_out_is_refused(command, data, capsys):
    words = command.replace("DATA", str(data)).split()
    code, said = run_command(words, capsys)
    assert code == 2 and "out is ''" in said


@pytest.mark.parametrize("option", ["--seed=18446744073709551616", "--vision-steps=-1"])
def test_wrong_options_of_train_are_one_sentence(option, tmp_path, capsys):
    code, said = run_command(["train", "--out", tmp_path / "out", option], capsys)
    assert code == 2 and said.count("\n") == 1 and ": expected " in said
    assert not (tmp_path / "out").exists()


# Data


GOOD = {"question": "What?", "answer": "yes"}
MILLION = list(range(1_000_000))
BAD_LINES = [
    (
        b'{"question": "a", "question": "b", "answer": "c"}',
        "'question' stands there tw",
    ),
    (b'{"messages": [{"role": "user", "role": "user", "content": "a"}]}', "'role' st"),
    ({**GOOD, "file_name": 0}, "the file names are [0]"),
    ({**GOOD, "file_name": False}, "the file names are [False]"),
    ({**GOOD, "file_name": ""}, "the file name '' is not a path inside"),
    ({**GOOD, "file_name": []}, "the file names are [[]]"),
    ({**GOOD, "file_name": "pipe"}, "pipe is no file"),
    ({**GOOD, "file_name": "sub"}, "sub is no file"),
    ({**GOOD, "file_name": "n" * 5000}, ""),
    ({**GOOD, "file_name": "nul\0l"}, ""),
    ({**GOOD, "file_name": "\ud800"}, ""),
    ({**GOOD, "file_name": "\x1b[2J"}, ""),
    ({**GOOD, "file_names": MILLION}, "the file names are [0, 1, 2, 3, 4, 5, ...]"),
    ({**GOOD, "answer": MILLION}, "the answer is [0, 1, 2, 3, 4, 5, ...]"),
    ({"messages": MILLION}, "a message is 0"),
    ({"messages": {"role": "user"}}, "the messages are {'role': 'user'}"),
    ({"question": {"type": "text", "text": "a"}, "answer": "b"}, "the question is {"),
    ({"question": "a", "answer": 5}, "the answer is 5"),
    ({"question": "a", "answer": True}, "the answer is True"),
    ({"question": "a\ud800", "answer": "b"}, "one half of a surrogate pair stands"),
    ({"question": "a", "answer": "b\udfff"}, "one half of a surrogate pair stands"),
    ({"k" * 10**6: 1, **GOOD}, "unknown key 'kkk"),
    ({**{f"k{i}": 1 for i in range(1000)}, **GOOD}, "unknown key 'k0'"),
    (b'{"question": ' + b"9" * 5000 + b', "answer": "a"}', ""),
    (b'{"question": NaN, "answer": "a"}', "the question is nan"),
    (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), "is not JSON"),
    (b"null", "it is a NoneType"),
    (b'"text"', "it is a str"),
]


def test_lines_that_are_no_samples(tmp_path):
    folder = write_folder(tmp_path / "data", [GOOD, *[bad for bad, _ in BAD_LINES]])
    os.mkfifo(folder / "pipe")
    reader = Reader(TOKENIZER, tiny().config)
    samples = reader.read(folder / "metadata.jsonl", "metadata.jsonl")
    assert len(samples) == 1 and reader.num_bad == len(BAD_LINES)
    for number, (_, says) in enumerate(BAD_LINES, start=2):
        start = f"metadata.jsonl line {number}: "
        here = [text for text in reader.problems if text.startswith(start)]
        assert any(says in text for text in here), (number, says, here)
    with pytest.raises(InputError) as error:
        read_samples(folder, TOKENIZER, tiny().config)
    assert len(str(error.value)) < 12_000 and "\x1b" not in str(error.value)


def test_ten_thousand_bad_lines_fit_on_a_screen(tmp_path, capsys):
    folder = write_folder(tmp_path / "data", [b"{"] * 10_000)
    code, said = run_command(["finetune", folder, "--out", tmp_path / "out"], capsys)
    assert code == 2 and said.count("\n") == 22 and len(said) < 4000
    assert "bad lines, 10000 of them" in said and "and 9980 more" in said


def test_a_line_is_bounded(tmp_path, monkeypatch):
    """A file of gigabytes in one line is never held whole."""
    monkeypatch.setattr(reading, "LONGEST_LINE", 1000)
    folder = write_folder(tmp_path / "data", [GOOD, b"x" * 999, b"x" * 1000])
    with open(folder / "metadata.jsonl", "ab") as file:
        for length in (1001, 5000, 1000 * 7, 1000 * 7 + 1):
            file.write(b"x" * length + b"\n")
        file.write(json.dumps(GOOD).encode() + b"\n" + b"y" * 3000)
    reader = Reader(TOKENIZER, tiny().config)
    samples = reader.read(folder / "metadata.jsonl", "m")
    assert [s.where for s in samples] == ["m line 1", "m line 8"]
    long = [text for text in reader.problems if "more than 1,000 bytes" in text]
    assert [int(text.split()[2][:-1]) for text in long] == [3, 4, 5, 6, 7, 9]


def test_half_a_gigabyte_of_one_line_takes_no_memory(tmp_path):
    code = """
import resource, sys
from pathlib import Path
from mllama_lite.adapters.data import lines_of
assert max(len(line) for line in lines_of(Path(sys.argv[1]))) < 2**24 + 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"\n")
    with open(large, "wb") as file:
        file.truncate(2**29)  # sparse: nothing is written
    environment, peaks = os.environ | {"PYTHONPATH": str(ROOT)}, []
    for path in (small, large):
        command = [sys.executable, "-c", code, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) * 1024)
    assert peaks[1] - peaks[0] < 200 * 2**20


@pytest.mark.parametrize("data", ["", "  ", None, 5, b"data", ["data"]])
def test_data_folders_of_another_kind(data):
    with pytest.raises(InputError) as error:
        read_samples(data, TOKENIZER, tiny().config)
    assert "The data folder is" in sentence(error)


@settings(FEW, max_examples=200)
@given(line=st.binary(max_size=60) | values.map(lambda v: json.dumps(v).encode()))
def test_any_line_is_a_sample_or_a_problem(tmp_path, line):
    reader = Reader(TOKENIZER, tiny_config())
    try:
        reader.sample(line, tmp_path, "here")
    except reading.Bad as bad:
        assert bad.args and all(isinstance(text, str) for text in bad.args)


entries = st.fixed_dictionaries(
    {},
    optional={
        "file_name": values,
        "file_names": values,
        "question": values,
        "answer": values,
        "messages": values
        | st.lists(st.fixed_dictionaries({"role": values, "content": values})),
    },
)


@settings(FEW, max_examples=200)
@given(entry=entries)
def test_any_values_under_the_right_keys(tmp_path, entry):
    reader = Reader(TOKENIZER, tiny_config())
    try:
        sample = reader.sample(json.dumps(entry).encode(), tmp_path, "here")
    except reading.Bad as bad:
        assert all(len(text) < 5000 for text in bad.args)
    else:
        assert sample.num_answer_tokens > 0


@cache
def tiny_config():
    """The configuration of `tiny`, made once."""
    return tiny().config
