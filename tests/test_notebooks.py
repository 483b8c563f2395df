"""The notebooks are whole, and the package is what they export; the exporter notices if not.

That the outputs are true is checked by tests/outputs.py: `make test` runs the notebooks.
"""

import base64
import importlib.util
import io
import re
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw

ROOT = Path(__file__).resolve().parent.parent

spec = importlib.util.spec_from_file_location(
    "exporter", ROOT / "tools" / "notebooks.py"
)
exporter = importlib.util.module_from_spec(spec)
spec.loader.exec_module(exporter)

NOTEBOOKS = exporter.notebook_paths(ROOT)
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


# The notebooks of the book.


@each_notebook
def test_outputs_are_those_of_one_whole_run_of_the_code(path):
    problems = exporter.run_problems(exporter.read(path))
    assert not problems, "\n".join([path.name, *problems])


@each_notebook
def test_no_warnings_and_no_picture_without_alternative_text(path):
    problems = exporter.page_problems(exporter.read(path))
    assert not problems, "\n".join([path.name, *problems])


# What may differ from run to run: an output of anything else is compared.
NOT_COMPARED = {"durations", "memory", "a library's log"}


def code_metadata():
    for path in NOTEBOOKS:
        for cell in exporter.code_cells(exporter.read(path)):
            assert "NBVAL" not in cell.source, f"{path.name}: tags say it, not comments"
            ours = cell.metadata.get("mllama_lite", {})
            yield f"{path.name} {cell.id}", cell.metadata.get("tags", []), ours


def test_outputs_that_are_not_compared_are_few_and_say_why():
    ignored = {}
    for name, tags, ours in code_metadata():
        if "nbval-ignore-output" in tags or "why_ignored" in ours:
            assert "nbval-ignore-output" in tags, name
            ignored[name] = set(ours.get("why_ignored", "nothing").split(", "))
        assert not {"nbval-skip", "nbval-check-output"} & set(tags), name
    assert all(reasons <= NOT_COMPARED for reasons in ignored.values()), ignored
    assert len(ignored) <= 40


def test_tolerances_are_small():
    """No tolerance lets through a number of another size, or twice as many."""
    for name, tags, ours in code_metadata():
        if tolerance := ours.get("tolerance"):
            assert tolerance.keys() <= {"absolute", "relative", "counts", "lines"}, name
            assert "nbval-ignore-output" not in tags, name
            assert 0 <= tolerance.get("absolute", 0) <= 0.1, name
            assert 0 <= tolerance.get("relative", 0) <= 0.5, name
            assert isinstance(tolerance.get("counts", 0), int), name


# Where a chapter shows that something does not hold. Elsewhere a verdict is True: a change of
# the code that turns one must not pass because the output was recorded anew.
MEANT_FALSE = {
    "01_tokenizer": {"tokenizer-029"},
    "02_rope": {"7298281b", "86cbc35a"},
    "05_tiles": {"tm05a11"},
    "06_local_vision": {"f2769860"},
    "08_cross_attention": {"9377f037"},
    "09_checkpoint": {"trained-wrong-logits"},
    "12_lora": {"c087"},
    "13_finetuning": {"ft0012"},
}


def test_verdicts_are_true():
    found = {}
    for path in NOTEBOOKS:
        for cell in exporter.code_cells(exporter.read(path)):
            text = "".join(output.get("text", "") for output in cell.outputs)
            if re.search(r": +False$", text, re.MULTILINE):
                found.setdefault(path.stem, set()).add(cell.id)
    assert found == MEANT_FALSE


def test_every_module_is_what_its_notebook_exports():
    problems = exporter.module_problems(ROOT)
    assert not problems, "\n".join(problems)


def test_every_notebook_is_in_the_book():
    toc = (ROOT / "_toc.yml").read_text()
    assert [p.stem for p in NOTEBOOKS if f"notebooks/{p.stem}\n" not in toc] == []


# The exporter itself, on a small book of one notebook.

HEADER = '#| export\n"""Rope, from `02_rope.ipynb`."""\n\nimport math'
FUNCTION = "#| export\ndef half(x):\n    return x / 2"
FIRST = "# Generated from notebooks/02_rope.ipynb: edit there, or here and run `make update`.\n"
MODULE = (
    FIRST
    + '''"""Rope, from `02_rope.ipynb`."""

import math


def half(x):
    return x / 2
'''
)


def code(source, **metadata):
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def write(root, cells, name="02_rope"):
    (root / "notebooks").mkdir(exist_ok=True)
    (root / "mllama_lite").mkdir(exist_ok=True)
    path = root / "notebooks" / f"{name}.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    return path


def edit(path, change):
    notebook = exporter.read(path)
    change(notebook)
    nbformat.write(notebook, path)


def pretend_run(path, outputs=None):
    """Store what a run would, without starting a kernel."""

    def change(notebook):
        for count, cell in enumerate(exporter.code_cells(notebook), 1):
            cell.execution_count = count
            cell.outputs = (outputs or {}).get(count, [])
        notebook.metadata["mllama_lite"] = {
            "source_sha256": exporter.source_hash(notebook)
        }

    edit(path, change)


@pytest.fixture
def book(tmp_path):
    path = write(
        tmp_path,
        [code("#| default_exp rope"), code(HEADER), code(FUNCTION), code("half(3)")],
    )
    pretend_run(path)
    assert exporter.main(["--export"], root=tmp_path) == 0
    assert exporter.main(["--check"], root=tmp_path) == 0
    return path


def checked(path, capsys):
    """The exit code and the words of --check on the book that a notebook is in."""
    return exporter.main(["--check"], root=path.parent.parent), capsys.readouterr().err


def module(path, name="rope"):
    return path.parent.parent / "mllama_lite" / f"{name}.py"


def test_a_module_reads_as_if_written_by_hand(book):
    assert module(book).read_text() == MODULE


def test_a_cell_can_go_to_another_module(tmp_path):
    path = write(
        tmp_path,
        [
            code("#| default_exp rope\n" + HEADER),
            code(FUNCTION),
            code('#| export errors\n"""Errors, from `02_rope.ipynb`."""'),
            code('#| export rooms/one\n"""A room, from `02_rope.ipynb`."""'),
        ],
    )
    pretend_run(path)
    assert exporter.main([], root=tmp_path) == 0
    assert module(path).read_text() == MODULE
    for name, words in (("errors", "Errors"), ("rooms/one", "A room")):
        text = FIRST + f'"""{words}, from `02_rope.ipynb`."""\n'
        assert module(path, name).read_text() == text


def test_check_shows_how_a_module_differs(book, capsys):
    module(book).write_text(MODULE.replace("x / 2", "x / 3"))
    status, words = checked(book, capsys)
    assert status == 1 and "-    return x / 3\n+    return x / 2" in words


TWO = """#| export
def third(x):
    return x / 3


# Not a tenth.
TENTH = 10"""


@pytest.fixture
def longer_book(tmp_path):
    path = write(
        tmp_path,
        [code("#| default_exp rope"), code(HEADER), code(FUNCTION), code(TWO)],
    )
    pretend_run(path)
    assert exporter.main(["--export"], root=tmp_path) == 0
    return path


def sources(path):
    return [cell.source for cell in exporter.code_cells(exporter.read(path))]


@pytest.mark.parametrize(
    "old, new, number",
    [
        ("x / 3", "x // 3", 3),
        ("# Not a tenth.", "# Ten.", 3),
        ("import math", "import math\nimport os", 1),
        ("Rope, from", "On rope, from", 1),
        (
            "    return x / 2",
            "    return x / 2\n\n\ndef quarter(x):\n    return x / 4",
            2,
        ),
        ("TENTH = 10", "TENTH: int = 10", 3),
    ],
)
def test_an_edit_of_a_module_is_carried_back(longer_book, old, new, number, capsys):
    before, root = sources(longer_book), longer_book.parent.parent
    edited = module(longer_book).read_text().replace(old, new)
    module(longer_book).write_text(edited)
    assert exporter.main(["--update"], root=root) == 0
    after = sources(longer_book)
    assert [i for i, pair in enumerate(zip(before, after)) if pair[0] != pair[1]] == [
        number
    ]
    assert new in after[number]
    pretend_run(longer_book)
    assert checked(longer_book, capsys) == (0, "")
    assert module(longer_book).read_text() == edited


def test_every_module_of_the_package_would_be_carried_back_as_it_is(tmp_path):
    """Cut into definitions and put together again, each cell is what it was."""
    seen = 0
    for path in NOTEBOOKS:
        for module, cells in exporter.exported(exporter.read(path), path.name).items():
            text = "\n\n\n".join(cells) + "\n"
            assert exporter.carried_back(cells, text) == cells, (path.name, module)
            seen += len(cells)
    assert seen > 200


def test_a_cell_that_would_be_empty_is_not_carried_back(longer_book, capsys):
    text = module(longer_book).read_text()
    module(longer_book).write_text(text.replace("def half(x):\n    return x / 2", ""))
    before = longer_book.read_bytes()
    assert exporter.main(["--update"], root=longer_book.parent.parent) == 1
    assert "'def half(x):' would be empty" in capsys.readouterr().err
    assert longer_book.read_bytes() == before


def test_check_finds_a_module_without_a_notebook(book, capsys):
    module(book, "stray").write_text("")
    status, words = checked(book, capsys)
    assert status == 1 and "stray.py has no notebook" in words


@pytest.mark.parametrize("name", ["__init__", "__main__", "cli"])
def test_modules_by_hand_need_no_notebook(book, name, capsys):
    module(book, name).write_text("")
    assert checked(book, capsys) == (0, "")


def test_check_wants_the_notebook_named_in_the_docstring(tmp_path, capsys):
    path = write(tmp_path, [code('#| default_exp rope\n#| export\n"""Rope."""')])
    pretend_run(path)
    exporter.main([], root=tmp_path)
    status, words = checked(path, capsys)
    assert status == 1 and "doesn't name 02_rope.ipynb" in words


@pytest.mark.parametrize(
    "counts", [[1, 2, 3, None], [1, 2, 3, 5], [1, 3, 2, 4], [2, 3, 4, 5]]
)
def test_a_notebook_not_run_whole_fails_and_is_not_exported(book, counts, capsys):
    def change(notebook):
        for cell, count in zip(exporter.code_cells(notebook), counts):
            cell.execution_count = count

    edit(book, change)
    status, words = checked(book, capsys)
    assert status == 1 and "was not run whole" in words
    module(book).unlink()
    assert exporter.main(["--export"], root=book.parent.parent) == 1
    assert not module(book).exists()


def test_code_edited_after_the_run_fails_and_is_not_exported(book, capsys):
    edit(
        book,
        lambda notebook: notebook.cells[2].update(source=FUNCTION.replace("2", "4")),
    )
    status, words = checked(book, capsys)
    assert status == 1 and "edited after the last whole run" in words
    assert exporter.main(["--export"], root=book.parent.parent) == 1
    assert module(book).read_text() == MODULE


def test_prose_may_be_edited_after_the_run(book, capsys):
    edit(
        book,
        lambda n: n.cells.append(nbformat.v4.new_markdown_cell("A better sentence.")),
    )
    assert checked(book, capsys) == (0, "")


def test_check_finds_stderr(book, capsys):
    stderr = nbformat.v4.new_output("stream", name="stderr", text="FutureWarning: ...")
    pretend_run(book, {4: [stderr]})
    status, words = checked(book, capsys)
    assert status == 1 and "cell 4 wrote to stderr" in words


ERROR = nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[])


@pytest.mark.parametrize(
    "outputs, tags, message",
    [
        ([ERROR], [], "shows an error without the tag"),
        ([], ["raises-exception"], "raised nothing"),
        ([ERROR], ["raises-exception"], ""),
    ],
)
def test_an_error_is_shown_if_and_only_if_its_cell_is_tagged(
    book, outputs, tags, message, capsys
):
    edit(book, lambda notebook: notebook.cells[3].metadata.update(tags=tags))
    pretend_run(book, {4: outputs})
    status, words = checked(book, capsys)
    assert status == (1 if message else 0) and message in words


@pytest.mark.parametrize(
    "data",
    [
        {"image/png": "iVBORw0KGgo="},
        {"image/svg+xml": "<svg/>"},
        {"text/html": "<div class='animation'><img id='frame'></div>"},
        {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}},
    ],
    ids=lambda data: next(iter(data)),
)
def test_every_picture_needs_alternative_text(book, data, capsys):
    picture = nbformat.v4.new_output("display_data", data=data)
    pretend_run(book, {4: [picture]})
    status, words = checked(book, capsys)
    assert status == 1 and "cell 4 shows a picture without alternative text" in words
    alt = {"image": {"alt": "A circle in two halves"}}
    edit(book, lambda notebook: notebook.cells[3].metadata.update(mystnb=alt))
    assert checked(book, capsys) == (0, "")


@pytest.mark.parametrize(
    "source, message",
    [
        ("#| exports\nx = 1", "unknown marker"),
        ("x = 1\n#| export", "a marker must open its cell"),
    ],
)
def test_a_marker_that_can_not_be_followed_is_an_error(book, source, message, capsys):
    edit(book, lambda notebook: notebook.cells.append(code(source)))
    status, words = checked(book, capsys)
    assert status == 1 and message in words


# Pictures.


def opened(png):
    return Image.open(io.BytesIO(png))


def as_png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def drawing(mode="RGB"):
    """Curves with soft edges, as matplotlib draws them."""
    image = Image.new(mode, (800, 600), "white")
    draw = ImageDraw.Draw(image)
    for i, colour in enumerate(("#0072B2", "#D55E00", "#222222")):
        draw.arc((50, 50 + 90 * i, 750, 500), 180, 350, colour, 9)
    return image.resize((400, 300))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_drawing_is_kept_in_a_palette_that_nobody_sees(mode):
    image = drawing(mode)
    small = exporter.in_palette(as_png(image))
    assert opened(small).mode == "P" and len(small) < 0.7 * len(as_png(image))
    difference = ImageChops.difference(
        image.convert("RGB"), opened(small).convert("RGB")
    )
    assert max(most for _, most in difference.getextrema()) <= 12
    assert exporter.in_palette(small) == small


def test_a_photograph_keeps_all_its_colours():
    numbers = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(numbers).resize((320, 240), Image.Resampling.BICUBIC)
    small = exporter.in_palette(as_png(image.convert("RGBA")))
    assert opened(small).mode == "RGB"
    assert ImageChops.difference(image, opened(small)).getbbox() is None


def test_what_shines_through_stays_so():
    png = as_png(Image.new("RGBA", (40, 30), (255, 0, 0, 128)))
    assert exporter.in_palette(png) == png


# Runs, which start a kernel.


def test_run_stores_outputs_and_exports(tmp_path, capsys):
    path = write(
        tmp_path,
        [
            code("#| default_exp rope"),
            code(HEADER),
            code(FUNCTION),
            code("half(3)"),
            code("half('three')", tags=["raises-exception"]),
            code(
                "from PIL import Image\n"
                "image = Image.effect_mandelbrot((300, 200), (-2, -1, 1, 1), 50)\n"
                "image.convert('RGB')",
                mystnb={"image": {"alt": "Mandelbrot's set, grey"}},
            ),
        ],
    )
    assert exporter.main(["--run", "02_rope"], root=tmp_path) == 0
    assert module(path).read_text() == MODULE
    assert checked(path, capsys) == (0, "")
    notebook = exporter.read(path)
    assert notebook.cells[3].outputs[0].data["text/plain"] == "1.5"
    assert "version" not in notebook.metadata.language_info
    assert "execution" not in notebook.cells[3].metadata
    picture = base64.b64decode(notebook.cells[5].outputs[0].data["image/png"])
    assert opened(picture).mode == "P"


@pytest.mark.parametrize(
    "last, message",
    [
        (code("half('three')"), "TypeError"),
        (code("half(3)", tags=["raises-exception"]), "raised nothing"),
    ],
    ids=["a cell fails", "a cell tagged to fail passes"],
)
def test_a_failed_run_writes_nothing(tmp_path, last, message, capsys):
    path = write(
        tmp_path, [code("#| default_exp rope"), code(HEADER), code(FUNCTION), last]
    )
    before = path.read_bytes()
    assert exporter.main(["--run"], root=tmp_path) == 1
    words = capsys.readouterr().err
    assert message in words and "nothing was written" in words
    assert path.read_bytes() == before and not module(path).exists()
