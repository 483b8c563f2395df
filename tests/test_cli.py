"""The command line as a person meets it: run as a process."""

import os
import pty
import re
import shutil
import subprocess
import sys

import pytest

from test_inference import PHOTO, folders  # noqa: F401  (a fixture)


def run(*arguments, **options):
    command = [sys.executable, "-m", "mllama_lite.cli", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, **options
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
    from mllama_lite.checkpoint import open_checkpoint

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
    answer = process.communicate(timeout=60)[0]
    assert process.returncode == 0 and answer.strip()
    assert "loading" not in answer and re.search(rb"loading \[#* *\]", shown)
    assert shown.endswith(b"\r\x1b[K")


def test_a_closed_pipe_is_no_error(folders):  # noqa: F811
    command = f"{sys.executable} -m mllama_lite.cli info {folders / 'hub'} | true"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
