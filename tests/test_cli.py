"""The command line as a person meets it; as a process where that makes a difference."""

import json
import os
import pty
import re
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

import mllama_lite
from mllama_lite import cli, load
from mllama_lite.attention_maps import draw_looks, look
from mllama_lite.small_model import training
from mllama_lite.small_model.evaluation import ROWS
from test_inference import PHOTO, folders  # noqa: F401  (a fixture)

QUESTION = "How many digits are there?"


def process(*arguments, **options):
    command = [sys.executable, "-m", "mllama_lite", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=600, **options
    )


@pytest.fixture
def run(capsys, monkeypatch):
    """A command run in this process, as subprocess.run would report it."""
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def command(*arguments):
        capsys.readouterr()
        code = cli.main(list(map(str, arguments)))
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    return command


@pytest.fixture
def refusal(run):
    """The one sentence that a command ends with."""

    def command(*arguments):
        done = run(*arguments)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("mllama-lite: ")
        assert done.stderr.count("\n") == 1 and len(done.stderr) < 1500
        return done.stderr

    return command


@pytest.mark.parametrize("layout", ["hub", "meta"])
def test_ask(run, folders, layout):  # noqa: F811
    model = ("--model", folders / layout, "--max-new-tokens", 8)
    done = run("ask", "What is this?", PHOTO, *model)
    assert done.returncode == 0 and done.stdout.strip() and done.stdout.endswith("\n")
    assert done.stderr == ""


def test_both_ways_to_start_it(folders):  # noqa: F811
    """As a process, under the package's name and under that of the command line."""
    model = ("--model", folders / "hub", "--max-new-tokens", 3)
    done = process("ask", "What is this?", PHOTO, *model)
    assert done.returncode == 0 and done.stdout.strip() and done.stderr == ""
    command = [sys.executable, "-m", "mllama_lite.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == f"mllama-lite {mllama_lite.__version__}\n"


def test_ask_several_and_none(run, folders):  # noqa: F811
    model = ("--model", folders / "hub", "--max-new-tokens", 4)
    model += ("--temperature", 1, "--seed", 5)
    several = run("ask", PHOTO, PHOTO, "What changed?", *model)
    assert several.returncode == 0
    for words in ((PHOTO, "What changed?", PHOTO), ("What changed?", PHOTO, PHOTO)):
        assert run("ask", *words, *model).stdout == several.stdout
    settings = ("--top-k", 5, "--top-p", 0.9, "--dtype", "bfloat16")
    assert run("ask", *settings, "Hello", *model).returncode == 0


def test_info(run, folders):  # noqa: F811
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
        ([PHOTO, ""], "A word of ask is ''"),
        (["What?", PHOTO, "--temperature", "-1"], "temperature is -1"),
        ([PHOTO, "What?", "--device", "cuda:99"], "The device 'cuda:99' is not there"),
        ([PHOTO, "What?", "--dtype", "int3"], "The dtype 'int3' is not known"),
        ([PHOTO, "What?", "--max-new-tokens", "0"], "max_new_tokens is 0"),
    ],
)
def test_bad_input_is_one_sentence(refusal, folders, arguments, says):  # noqa: F811
    assert says in refusal("ask", *arguments, "--model", folders / "hub")


def test_bad_models(refusal, tmp_path):
    for model in (tmp_path / "nowhere", tmp_path):
        for command in (("ask", "hi", "--model", model), ("info", model)):
            refusal(*command)
    offline = dict(os.environ, HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    for command in (("ask", "hi", "--model", "a/b"), ("info", "a/b")):
        done = process(*command, env=offline)
        assert done.returncode == 2 and "cannot be reached" in done.stderr
        assert done.stderr.count("\n") == 1 and done.stdout == ""


def test_progress_only_on_a_terminal(folders):  # noqa: F811
    """A bar on standard error, if that is a terminal, and gone when loading is done."""
    leader, follower = pty.openpty()
    command = [
        sys.executable,
        "-m",
        "mllama_lite",
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
    command = f"{sys.executable} -m mllama_lite info {folders / 'hub'} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr


def test_without_a_model_the_small_one_answers(run):
    vlm = load(device="cpu")
    for images in ([], [PHOTO], [PHOTO, PHOTO]):
        want = vlm.ask(QUESTION, images=images, max_new_tokens=8)
        done = run("ask", *images, QUESTION, "--max-new-tokens", 8)
        assert done.returncode == 0 and done.stderr == "" and done.stdout == want + "\n"
    done = run("info")
    count = sum(parameter.numel() for parameter in vlm.model.parameters())
    assert done.returncode == 0 and f"{count:,} parameters" in done.stdout


def test_json_of_ask_is_one_object(run):
    settings = ("--max-new-tokens", 8, "--temperature", 0.5, "--seed", 3)
    done = run("ask", "--json", QUESTION, PHOTO, *settings)
    document = json.loads(done.stdout)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.isascii()
    assert document["answer"] + "\n" == run("ask", QUESTION, PHOTO, *settings).stdout
    assert document["question"] == QUESTION and document["images"] == [str(PHOTO)]
    assert document["model"] is None and document["adapter"] is None
    want = {"temperature": 0.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3}
    assert document["settings"] == want | {"max_new_tokens": 8}


def test_json_of_info_says_what_the_lines_say(run, folders):  # noqa: F811
    for layout in ("hub", "meta"):
        lines = run("info", folders / layout).stdout
        done = run("info", "--json", folders / layout, "--dtype", "float32")
        facts = json.loads(done.stdout)
        assert f"{facts['parameters']:,} parameters" in lines
        assert facts["layout"] == layout and facts["tokenizer"] is True
        assert facts["model"] == str(folders / layout) and facts["dtype"] == "float32"
        assert facts["missing"] == facts["unexpected"] == []
        assert facts["text"]["cross_attention_layers"] and facts["vision"]
        assert facts["memory"][0]["bytes"]["weights"] == facts["bytes"]
        assert facts["bytes"] == 4 * facts["parameters"]


@pytest.mark.parametrize("name", ["seen.png", "seen.JPG"])
def test_show_saves_a_picture_and_changes_no_answer(run, tmp_path, name):
    done = run("ask", "--show", tmp_path / name, QUESTION, PHOTO, "--max-new-tokens", 8)
    vlm = load(device="cpu")
    answer = vlm.ask(QUESTION, images=PHOTO, max_new_tokens=8)
    assert done.returncode == 0 and done.stderr == "" and done.stdout == answer + "\n"
    drawn = Image.open(tmp_path / name)
    want = draw_looks(look(vlm, QUESTION, PHOTO, 8), vlm.config.vision)
    assert drawn.size == want.size and drawn.mode == "RGB"
    if name == "seen.png":
        assert drawn.tobytes() == want.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == [name]


STEPS = ("--vision-steps", 2, "--joint-steps", 3, "--decay-steps", 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(folder, process) of a training of five steps."""
    folder = tmp_path_factory.mktemp("trained")
    return folder / "new" / "model", process(
        "train", "--out", folder / "new" / "model", *STEPS
    )


def test_train_makes_a_model_that_answers(trained):
    folder, done = trained
    assert done.returncode == 0 and done.stdout == f"{folder}\n"
    assert "5 of 5" in done.stderr and "Traceback" not in done.stderr
    assert load(folder, device="cpu").ask("Why?", max_new_tokens=3) is not None
    assert cli.main(["info", str(folder)]) == 0


def test_train_goes_on_where_it_was_stopped(trained, tmp_path, monkeypatch):
    def stop(trainer):
        if trainer.step == 4:
            raise KeyboardInterrupt

    plan = training.Plan(vision_steps=2, joint_steps=3, decay_steps=1)
    monkeypatch.setattr(training, "SAVE_EVERY", 3)
    with torch.enable_grad(), pytest.raises(KeyboardInterrupt):
        training.train(tmp_path, plan, stop, workers=0)
    assert process("train", "--out", tmp_path, *STEPS).returncode == 0
    for name in ("model.safetensors", "history.json", "tokenizer.model"):
        assert (tmp_path / name).read_bytes() == (trained[0] / name).read_bytes()


def test_train_goes_on_from_a_model(trained, tmp_path, refusal):
    """With drawings, half of them a pen's, and in its own folder only."""
    folder, out = trained[0], tmp_path / "on"
    few = ("--joint-steps", 2, "--decay-steps", 1, "--out", out)
    done = process("train", "--start", folder, *few)
    assert done.returncode == 0 and "2 of 2" in done.stderr
    assert load(out, device="cpu").ask("Why?", max_new_tokens=3) is not None
    said = refusal("train", *few)
    assert "was begun with seed 1: expected 0" in said
    said = refusal("train", "--start", folder, "--plan", "rows", *few)
    assert "was begun with seed 1: expected 2" in said
    said = refusal("train", "--plan", "rows", *few)
    assert "There is no --start" in said and "'rows'" in said
    said = refusal("train", "--start", tmp_path / "none", *few)
    assert "none" in said and "Traceback" not in said


def test_train_refuses_another_plan(trained, refusal):
    folder, _ = trained
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name, value, old in (("seed", 1, 0), ("joint-steps", 4, 3)):
        plan = (*STEPS, f"--{name}", value)
        said = refusal("train", "--out", folder, *plan)
        name = name.replace("-", "_")
        assert f"was begun with {name} {old}: expected {value}" in said
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["seed", "vision-steps", "joint-steps", "decay-steps"])
def test_train_refuses_negative_numbers(tmp_path, refusal, name):
    plan = (*STEPS, f"--{name}", -1)
    with torch.enable_grad():
        said = refusal("train", "--out", tmp_path / "new", *plan)
    assert f"{name.replace('-', '_')} is -1" in said and not list(tmp_path.iterdir())


def test_train_refuses_a_file_for_a_folder(tmp_path, refusal):
    (tmp_path / "model").write_text("mine")
    assert "model" in refusal("train", "--out", tmp_path / "model", *STEPS)
    assert (tmp_path / "model").read_text() == "mine"


def test_measure_prints_all_rows(run, tmp_path):
    out = tmp_path / "counts.json"
    asked = ("measure", "--questions", 2, "--split", "validation")
    done = run(*asked, "--out", out)
    heading, *lines = done.stdout.splitlines()
    columns = ["right", "95%", "interval", "wrong", "blank", "none", "guess", "unseen"]
    assert done.returncode == 0 and heading.split() == columns and done.stderr == ""
    assert [line[:18].strip() for line in lines] == [*ROWS, "all"]
    document = json.loads(out.read_text())
    assert document["split"] == "validation" and len(document["weights_sha256"]) == 64
    assert document["dtype"] == "bfloat16"
    assert list(document["counts"]["right"]) == [*ROWS, "all"]
    assert run(*asked, "--json").stdout == out.read_text()
    wide = json.loads(run(*asked, "--json", "--dtype", "float32").stdout)
    assert (
        wide["dtype"] == "float32"
        and wide["counts"].keys() == document["counts"].keys()
    )
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
def test_measure_refuses(refusal, arguments, says):
    assert says in refusal("measure", *arguments)
