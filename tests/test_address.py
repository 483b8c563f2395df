"""A notebook that is opened alone fetches what it needs, once the book has an address."""

import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import address

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "book" / "extensions"))
import launch  # noqa: E402


@pytest.fixture
def copy(tmp_path):
    """A small repository with what a chapter imports first."""
    root = tmp_path / "repository"
    (root / "notebooks").mkdir(parents=True)
    for name in ("_config.yml", "requirements.txt", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "mllama_lite", root / "mllama_lite")
    for name in ("figures.py", "model_map.py"):
        shutil.copy(ROOT / "notebooks" / name, root / "notebooks" / name)
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell("import figures\nfigures.__file__")]
    nbformat.write(notebook, root / "notebooks" / "01_first.ipynb")
    return root


def test_without_an_address_nothing_is_added():
    assert launch.links("", "notebooks/02_rope") == {}
    for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        assert all(c.id != address.ID for c in nbformat.read(path, as_version=4).cells)


def test_buttons_lead_to_the_notebook():
    found = launch.links("https://github.com/some/book", "notebooks/02_rope")
    assert found["Open in Colab"] == (
        "https://colab.research.google.com/github/some/book/blob/main/notebooks/02_rope.ipynb"
    )
    assert found["Open in Kaggle"].endswith(
        "?src=https://github.com/some/book/blob/main/notebooks/02_rope.ipynb"
    )
    assert launch.links("https://github.com/some/book", "book/intro") == {}


def test_an_address_is_set_once_and_taken_out(copy):
    before = (copy / "notebooks" / "01_first.ipynb").read_bytes()
    address.set_address(copy, "https://github.com/some/book")
    address.set_address(copy, "https://github.com/other/book")
    text = (copy / "_config.yml").read_text(encoding="utf-8")
    assert 'notebooks_address: "https://github.com/other/book"' in text
    (first, _) = nbformat.read(copy / "notebooks" / "01_first.ipynb", 4).cells
    assert first.id == address.ID and "other/book" in first.source
    address.set_address(copy, "")
    assert (copy / "notebooks" / "01_first.ipynb").read_bytes() == before
    assert (copy / "_config.yml").read_text() == (ROOT / "_config.yml").read_text()
    with pytest.raises(SystemExit, match="expected that of a repository"):
        address.set_address(copy, "somewhere/")


def test_a_notebook_alone_runs(copy, tmp_path, monkeypatch):
    """It is given to nobody else: what it fetches comes from the copy; pip has all it needs."""
    address.set_address(copy, copy.as_uri())
    for words in (
        ("init", "-q"),
        ("add", "-A"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"),
    ):
        subprocess.run(["git", *words], cwd=copy, check=True)
    alone = tmp_path / "alone"
    alone.mkdir()
    notebook = nbformat.read(copy / "notebooks" / "01_first.ipynb", as_version=4)
    # The installation of the package itself would replace the one that is being tested.
    notebook.cells[0].source = notebook.cells[0].source.replace('"-e", ".."', '"pip"')
    resources = {"metadata": {"path": str(alone)}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()
    (shown,) = notebook.cells[1].outputs
    assert str(alone / "llama-vision" / "notebooks") in shown.data["text/plain"]
