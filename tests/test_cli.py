"""The command line as a person meets it: run as a process."""

import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from mllama_lite import cli, load
from mllama_lite.attention_maps import draw_looks, look
from mllama_lite.small_model import training
from mllama_lite.small_model.evaluation import ROWS
from test_inference import PHOTO, folders  # noqa: F401  (a fixture)


def run(*arguments, **options):
    command = [sys.executable, "-m", "mllama_lite.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, **options
    )


@pytest.mark.parametrize("layout", ["hub", "meta"])
def test_ask(folders, layout):  # noqa: F811
    done = run(
        "ask",
        PHOTO,
        "What is this?",
        "--model",
        folders / layout,
        "--max-new-tokens",
        8,
    )
    assert done.returncode == 0 and done.stdout.strip() and done.stdout.endswith("\n")
    assert done.stderr == ""


def test_ask_several_and_none(folders):  # noqa: F811
    model = (
        "--model",
        folders / "hub",
        "--max-new-tokens",
        4,
        "--temperature",
        1,
        "--seed",
        5,
    )
    several = run("ask", PHOTO, PHOTO, "What changed?", *model)
    assert (
        several.returncode == 0
        and several.stdout == run("ask", PHOTO, PHOTO, "What changed?", *model).stdout
    )
    assert (
        run(
            "ask", "Hello", *model, "--top-k", 5, "--top-p", 0.9, "--dtype", "bfloat16"
        ).returncode
        == 0
    )


def test_info(folders):  # noqa: F811
    done = run("info", folders / "hub")
    assert done.returncode == 0 and done.stderr == ""
    for words in (
        "3 self-attention and 2 cross-attention",
        "parameters",
        "GiB",
        "tokenizer: yes",
    ):
        assert words in done.stdout


def test_info_of_a_hub_id_fetches_no_weights(folders, tmp_path, monkeypatch, capsys):  # noqa: F811
    import huggingface_hub

    from mllama_lite import cli
    from mllama_lite.checkpoints.loading import open_checkpoint

    fetched = []

    def snapshot(model_id, allow_patterns):
        fetched.append((model_id, allow_patterns))
        return str(tmp_path)

    shutil.copy(folders / "hub" / "config.json", tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert cli.main(["info", "some/model"]) == 0
    assert fetched == [("some/model", ["config.json"])]
    shown = capsys.readouterr().out
    count = open_checkpoint(folders / "hub").report.num_parameters
    assert f"{count:,} parameters" in shown and "fits on a card" in shown


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["nothing.jpg", "What?"], "nothing.jpg does not exist"),
        ([PHOTO, ""], "The question is ''"),
        ([PHOTO, "What?", "--temperature", "-1"], "temperature is -1"),
        ([PHOTO, "What?", "--device", "cuda:99"], "The device 'cuda:99' is not there"),
        ([PHOTO, "What?", "--dtype", "int3"], "The dtype 'int3' is not known"),
        ([PHOTO, "What?", "--max-new-tokens", "0"], "max_new_tokens is 0"),
    ],
)
def test_bad_input_is_one_sentence(folders, arguments, says):  # noqa: F811
    done = run("ask", *arguments, "--model", folders / "hub")
    assert done.returncode == 2 and done.stdout == ""
    assert says in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("mllama-lite: ")


def test_bad_models(tmp_path):
    for model in (tmp_path / "nowhere", tmp_path):
        for command in (("ask", "hi", "--model", model), ("info", model)):
            done = run(*command)
            assert done.returncode == 2 and "Traceback" not in done.stderr
    offline = dict(os.environ, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    for command in (("ask", "hi", "--model", "a/b"), ("download", "a/b")):
        done = run(*command, env=offline)
        assert done.returncode == 2 and "cannot be reached" in done.stderr
    assert run("ask").returncode == 2 and run("dance").returncode == 2


def test_progress_only_on_a_terminal(folders):  # noqa: F811
    """A bar on standard error, if that is a terminal, and gone when loading is done."""
    leader, follower = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "mllama_lite.cli",
        "ask",
        "hi",
        "--model",
        str(folders / "hub"),
    ]
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "3"],
        stdout=subprocess.PIPE,
        stderr=follower,
        text=True,
    )
    os.close(follower)
    shown = b""
    while True:
        try:
            part = os.read(leader, 4096)
        except OSError:  # the other end has closed
            break
        if not part:
            break
        shown += part
    answer = process.communicate(timeout=600)[0]
    assert process.returncode == 0 and answer.strip()
    assert "loading" not in answer and re.search(rb"loading \[#* *\]", shown)
    assert shown.endswith(b"\r\x1b[K")


def test_a_closed_pipe_is_no_error(folders):  # noqa: F811
    command = f"{sys.executable} -m mllama_lite.cli info {folders / 'hub'} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def said(folder, *arguments):
    """What the shipped model answers; nothing else is printed."""
    done = run("ask", *arguments, "--max-new-tokens", 8, cwd=folder)
    assert done.returncode == 0 and done.stderr == ""
    return done.stdout


def test_without_a_model_the_small_one_answers(tmp_path):
    vlm = load(device="cpu")
    for images in ([], [PHOTO], [PHOTO, PHOTO]):
        want = vlm.ask("How many digits are there?", images, max_new_tokens=8)
        got = said(tmp_path, *images, "How many digits are there?")
        assert got == want + "\n"
    done = run("info")
    count = sum(parameter.numel() for parameter in vlm.model.parameters())
    assert done.returncode == 0 and f"{count:,} parameters" in done.stdout


@pytest.mark.parametrize("name", ["seen.png", "seen.JPG"])
def test_show_saves_a_picture_and_changes_no_answer(tmp_path, name):
    question = "How many digits are there?"
    got = said(tmp_path, PHOTO, question, "--show", name)
    vlm = load(device="cpu")
    assert got == vlm.ask(question, PHOTO, max_new_tokens=8) + "\n"
    drawn = Image.open(tmp_path / name)
    want = draw_looks(look(vlm, PHOTO, question, 8), vlm.config.vision)
    assert drawn.size == want.size and drawn.mode == "RGB"
    if name == "seen.png":
        assert drawn.tobytes() == want.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == [name]


def refusal(capsys, *arguments):
    """The one sentence that a command ends with, in this process."""
    assert cli.main(list(map(str, arguments))) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1
    return shown.err


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["Why?", "--show", "a.png"], "--show a.png has no image to show"),
        ([PHOTO, "Why?", "--show", "a.doc"], "--show a.doc ends in '.doc'"),
        ([PHOTO, "Why?", "--show", "a"], "--show a ends in ''"),
        ([PHOTO, "Why?", "--show", "a.psd"], "--show a.psd ends in '.psd'"),
        (
            [PHOTO, "Why?", "--show", "no/a.png"],
            "no/a.png is in a folder that does not",
        ),
    ],
)
def test_show_refuses_at_once(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert says in refusal(capsys, "ask", *arguments)
    assert not list(tmp_path.iterdir())


STEPS = ("--vision-steps", 2, "--joint-steps", 3, "--decay-steps", 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, process) of a training of five steps."""
    folder = tmp_path_factory.mktemp("trained")
    return folder / "new" / "model", run(
        "train", "--out", folder / "new" / "model", *STEPS
    )


def test_train_makes_a_model_that_answers(trained):
    folder, done = trained
    assert done.returncode == 0 and done.stdout == f"{folder}\n"
    assert "5 of 5" in done.stderr and "Traceback" not in done.stderr
    assert load(folder, device="cpu").ask("Why?", max_new_tokens=3) is not None
    assert run("info", folder).returncode == 0


def test_train_goes_on_where_it_was_stopped(trained, tmp_path, monkeypatch):
    def stop(trainer):
        if trainer.step == 4:
            raise KeyboardInterrupt

    plan = training.Plan(vision_steps=2, joint_steps=3, decay_steps=1)
    monkeypatch.setattr(training, "SAVE_EVERY", 3)
    with torch.enable_grad(), pytest.raises(KeyboardInterrupt):
        training.train(tmp_path, plan, stop, workers=0)
    assert run("train", "--out", tmp_path, *STEPS).returncode == 0
    for name in ("model.safetensors", "history.json", "tokenizer.model"):
        assert (tmp_path / name).read_bytes() == (trained[0] / name).read_bytes()


def test_train_refuses_another_plan(trained, capsys):
    folder, _ = trained
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, value, old in (("seed", 1, 0), ("joint-steps", 4, 3)):
        plan = (*STEPS, f"--{name}", value)
        said = refusal(capsys, "train", "--out", folder, *plan)
        name = name.replace("-", "_")
        assert f"was begun with {name} {old}: expected {value}" in said
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["seed", "vision-steps", "joint-steps", "decay-steps"])
def test_train_refuses_negative_numbers(tmp_path, capsys, name):
    plan = (*STEPS, f"--{name}", -1)
    with torch.enable_grad():
        said = refusal(capsys, "train", "--out", tmp_path / "new", *plan)
    assert f"{name.replace('-', '_')} is -1" in said and not list(tmp_path.iterdir())


def test_train_refuses_a_file_for_a_folder(tmp_path, capsys):
    (tmp_path / "model").write_text("mine")
    assert "model" in refusal(capsys, "train", "--out", tmp_path / "model", *STEPS)
    assert (tmp_path / "model").read_text() == "mine"


def test_measure_prints_all_rows(capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    assert cli.main(["measure", "--questions", "2", "--split", "validation"]) == 0
    shown = capsys.readouterr()
    heading, *lines = shown.out.splitlines()
    columns = ["right", "95%", "interval", "wrong", "blank", "none", "guess", "unseen"]
    assert heading.split() == columns and shown.err == ""
    assert [line[:18].strip() for line in lines] == [*ROWS, "all"]
    for line in lines[:-1]:
        share, *bounds_and_shares = re.findall(r"\d\.\d{3}", line[18:])
        assert len(bounds_and_shares) == 7
        assert {share, *bounds_and_shares[2:]} <= {"0.000", "0.500", "1.000"}


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--split", "dev"], "The split is 'dev'"),
        (["--questions", "0"], "The number of questions in a row is 0"),
    ],
)
def test_measure_refuses(capsys, monkeypatch, arguments, says):
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    assert says in refusal(capsys, "measure", *arguments)
