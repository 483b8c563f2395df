"""Export the package from the notebooks, run them, and check that the two agree.

    python tools/notebooks.py --export          write mllama_lite/ from the notebooks as they are
    python tools/notebooks.py --check           exit 1 if modules and notebooks differ, or if a
                                                notebook's outputs are not those of one whole run
    python tools/notebooks.py --run [NAME ...]  run notebooks (02_rope; all, if none is named) and
                                                export from those whose cells all passed
    python tools/notebooks.py --update          carry edits of mllama_lite/ back into the cells that
                                                they came from; --run those notebooks afterwards

The markers are nbdev's. `#| default_exp rope` in the first code cell names the module,
a cell that opens with `#| export` goes into it, and `#| export checkpoints/names` sends a
cell to another module, here mllama_lite/checkpoints/names.py.
"""

import argparse
import ast
import base64
import difflib
import hashlib
import io
import json
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from PIL import Image, ImageChops

ROOT = Path(__file__).resolve().parent.parent
BY_HAND = {"__init__", "__main__", "cli"}  # modules, or folders of them
# Written by Jupyter, JupyterLab, Colab and VS Code; different at every run.
VOLATILE = [
    "execution",
    "ExecuteTime",
    "collapsed",
    "scrolled",
    "vscode",
    "colab",
    "outputId",
]
PICTURE_IN_HTML = re.compile(r"<(img|svg|canvas|video)\b", re.IGNORECASE)
WIDGET = "application/vnd.jupyter.widget-view+json"


def notebook_paths(root: Path) -> list[Path]:
    return sorted((root / "notebooks").glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook) -> list:
    return [c for c in notebook.cells if c.cell_type == "code" and c.source.strip()]


def split_markers(source: str) -> tuple[list[list[str]], str]:
    """The marker lines that a cell opens with, as words, and the code after them."""
    lines = source.strip().split("\n")
    markers = []
    while lines and lines[0].startswith("#|"):
        markers.append(lines.pop(0)[2:].split())
    return markers, "\n".join(lines).strip()


def exported(notebook, name: str) -> dict[str, list[str]]:
    """The pieces of code that a notebook sends to each module, in order."""
    default, pieces = None, {}
    for cell in code_cells(notebook):
        markers, code = split_markers(cell.source)
        if re.search(r"^#\|", code, re.MULTILINE):
            raise ValueError(f"{name}: a marker must open its cell: {code[:60]!r}")
        for marker in markers:
            match marker:
                case ["default_exp", module]:
                    default = module
                case ["export"] if default is None:
                    raise ValueError(
                        f"{name}: '#| export' comes before '#| default_exp'"
                    )
                case ["export"]:
                    pieces.setdefault(default, []).append(code)
                case ["export", module]:
                    pieces.setdefault(module, []).append(code)
                case _:
                    raise ValueError(f"{name}: unknown marker '#| {' '.join(marker)}'")
    return pieces


def first_line(sources: list[str]) -> str:
    """What each module opens with: where it comes from, and the two ways to change it."""
    names = " and ".join(f"notebooks/{name}" for name in sources)
    line = f"# Generated from {names}: edit there, or here and run `make update`.\n"
    return line if len(line) < 100 else line.replace(": ", ":\n# ")


def modules(root: Path) -> dict[str, tuple[str, list[str]]]:
    """For each module, its text and the file names of the notebooks it comes from."""
    pieces, sources = {}, {}
    for path in notebook_paths(root):
        for module, code in exported(read(path), path.name).items():
            pieces.setdefault(module, []).extend(code)
            sources.setdefault(module, []).append(path.name)
    return {
        m: (first_line(sources[m]) + "\n\n\n".join(pieces[m]) + "\n", sources[m])
        for m in pieces
    }


def module_path(root: Path, module: str) -> Path:
    return root / "mllama_lite" / f"{module}.py"


def module_problems(root: Path) -> list[str]:
    """Where mllama_lite/ and the notebooks differ, and modules that don't say whence they come."""
    problems, wanted = [], modules(root)
    for module, (text, sources) in wanted.items():
        path = module_path(root, module)
        committed = path.read_text() if path.exists() else ""
        if committed != text:
            diff = difflib.unified_diff(
                committed.splitlines(True),
                text.splitlines(True),
                f"mllama_lite/{module}.py",
                f"notebooks/{sources[0]}",
            )
            problems.append(f"{module}.py differs from {sources[0]}:\n" + "".join(diff))
        try:
            docstring = ast.get_docstring(ast.parse(text)) or ""
        except SyntaxError as error:
            problems.append(f"{sources[0]}: {module}.py would not be Python: {error}")
            continue
        if sources[0] not in docstring:
            problems.append(
                f"{sources[0]}: the docstring of {module}.py doesn't name {sources[0]}"
            )
    package = root / "mllama_lite"
    for path in sorted(package.rglob("*.py")):
        module = path.relative_to(package).with_suffix("").as_posix()
        if module not in wanted and not BY_HAND & {path.stem, path.parent.name}:
            problems.append(f"{module}.py has no notebook")
    return problems


def source_hash(notebook) -> str:
    """Over the code alone, so that prose can be mended without a new run."""
    sources = [c.source for c in code_cells(notebook)]
    return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def run_problems(notebook) -> list[str]:
    """Why the outputs are not those of one whole run of this code: no export then."""
    problems, cells = [], code_cells(notebook)
    counts = [c.execution_count for c in cells]
    if counts != list(range(1, len(cells) + 1)):
        problems.append(f"was not run whole, in order: execution counts are {counts}")
    if notebook.metadata.get("mllama_lite", {}).get("source_sha256") != source_hash(
        notebook
    ):
        problems.append("its code was edited after the last whole run")
    for number, cell in enumerate(cells, 1):
        raises = any(o.output_type == "error" for o in cell.outputs)
        tagged = "raises-exception" in cell.metadata.get("tags", [])
        if raises and not tagged:
            problems.append(
                f"cell {number} shows an error without the tag raises-exception"
            )
        if tagged and not raises:
            problems.append(
                f"cell {number} has the tag raises-exception and raised nothing"
            )
    return problems


def is_picture(output) -> bool:
    data = output.get("data", {})
    html = "".join(data.get("text/html", ""))
    return bool(
        WIDGET in data
        or PICTURE_IN_HTML.search(html)
        or any(mime.startswith("image/") for mime in data)
    )


def page_problems(notebook) -> list[str]:
    """What a reader of the page should not meet: warnings, and pictures without words."""
    problems = []
    for number, cell in enumerate(code_cells(notebook), 1):
        if any(o.get("name") == "stderr" for o in cell.outputs):
            problems.append(f"cell {number} wrote to stderr")
        # The page puts this text on an image and, by book/extensions/exported.py, on a group
        # around anything else that is looked at: an animation, a widget, inline SVG.
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        if any(is_picture(o) for o in cell.outputs) and not alt.strip():
            problems.append(f"cell {number} shows a picture without alternative text")
    return problems


def check(root: Path) -> list[str]:
    problems = []
    for path in notebook_paths(root):
        notebook = read(path)
        problems += [
            f"{path.name}: {p}"
            for p in run_problems(notebook) + page_problems(notebook)
        ]
    return problems + module_problems(root)


def export(root: Path, only: set[str] | None = None) -> list[str]:
    """Write the modules (those in `only`, if given); return why some were not written."""
    whole = {p.name: run_problems(read(p)) for p in notebook_paths(root)}
    problems = []
    for module, (text, sources) in modules(root).items():
        if only is not None and module not in only:
            continue
        reasons = [f"{s}: {reason}" for s in sources for reason in whole[s]]
        if reasons:
            problems += [f"{module}.py was not written. {reason}" for reason in reasons]
            continue
        path = module_path(root, module)
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            print(f"wrote mllama_lite/{module}.py")
    return problems


def definitions(code: str) -> list[tuple[str, str]]:
    """The statements of some code, each with its name and the lines since the one before.

    What has no name, such as an import, goes by the empty one.
    """
    lines, pieces, begin = code.split("\n"), [], 0
    for node in ast.parse(code).body:
        name = getattr(node, "name", "")
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            first = target.elts[0] if isinstance(target, ast.Tuple) else target
            name = name or getattr(first, "id", "")
        pieces.append((name, "\n".join(lines[begin : node.end_lineno])))
        begin = node.end_lineno
    return pieces


def carried_back(cells: list[str], text: str) -> list[str]:
    """A module's text as the code of the cells that it came from.

    A definition goes into the cell that holds one of its name, what has no name or a
    new one into the cell of the definition before it; the first cell takes the head.
    """
    home = {}
    for number, code in enumerate(cells):
        for name, _ in definitions(code):
            home.setdefault(name, number)
    parts, here = [[] for _ in cells], 0
    for name, piece in definitions(text):
        here = home[name] if name and name in home else here
        parts[here].append(piece)
    return ["\n".join(pieces).strip("\n") for pieces in parts]


def update(root: Path) -> list[str]:
    """Write edits of the modules into the notebooks; return what could not be carried."""
    problems, wanted = [], modules(root)
    notebooks = {path: read(path) for path in notebook_paths(root)}
    changed = set()
    for module, (text, _) in wanted.items():
        path = module_path(root, module)
        edited = path.read_text() if path.exists() else text
        if edited == text:
            continue
        places = []
        for source, notebook in notebooks.items():
            default = None
            for cell in code_cells(notebook):
                markers, code = split_markers(cell.source)
                for marker in markers:
                    default = marker[1] if marker[0] == "default_exp" else default
                if ["export", module] in markers or (
                    ["export"] in markers and default == module
                ):
                    places.append((source, cell, code))
        body = re.sub(r"\A(#.*\n)*", "", edited)  # without its first line
        new = carried_back([code for _, _, code in places], body)
        if not all(new):
            empty = places[new.index("")][2].split("\n")[0]
            problems.append(
                f"{module}.py: the cell that begins with {empty!r} would be empty; "
                "remove it in the notebook first"
            )
            continue
        for (source, cell, code), now in zip(places, new):
            if now != code:
                markers = [x for x in cell.source.split("\n") if x.startswith("#|")]
                cell.source = "\n".join([*markers, now])
                changed.add(source)
    for path in sorted(changed):
        nbformat.write(notebooks[path], path)
        print(f"updated {path.name}; run it: tools/notebooks.py --run {path.stem}")
    return problems


def normalise(notebook) -> None:
    """Keep only the metadata that has a use, so that diffs show what changed."""
    language = notebook.metadata.get("language_info", {})
    language.pop("version", None)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": kernel, "language_info": language}
    )
    for cell in notebook.cells:
        for key in VOLATILE:
            cell.metadata.pop(key, None)
        # Controls need a kernel; a page that is read shows what they say of themselves.
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)


def in_palette(png: bytes) -> bytes:
    """A picture in 256 colours where that can't be seen, and in all its colours elsewhere.

    Drawings have few colours, and with a palette a third of the bytes; photographs and
    fine gradients would show bands. The limit is 12 of 255 in every pixel.
    """
    with Image.open(io.BytesIO(png)) as image:
        alpha = image.convert("RGBA").getchannel("A").getextrema()
        if image.mode == "P" or alpha != (255, 255):
            return png
        picture = image.convert("RGB")
    palette = picture.quantize(
        256, Image.Quantize.MAXCOVERAGE, 1, dither=Image.Dither.NONE
    )
    error = ImageChops.difference(picture, palette.convert("RGB")).getextrema()
    small = io.BytesIO()
    alike = max(most for _, most in error) <= 12
    (palette if alike else picture).save(small, "PNG", optimize=True)
    return min(small.getvalue(), png, key=len)


def shrink_pictures(notebook) -> None:
    for cell in code_cells(notebook):
        for output in cell.outputs:
            data = output.get("data", {})
            if "image/png" in data:
                png = base64.b64decode(data["image/png"])
                data["image/png"] = base64.b64encode(in_palette(png)).decode()


# Run last, and not kept: what a run of the notebook took.
TOOK = """
import json, os, platform, resource, sys
from importlib.metadata import version
torch = sys.modules.get("torch")
print(json.dumps({
    "memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000,
    "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    "threads": torch.get_num_threads() if torch else 1,
    "python": platform.python_version(),
    "torch": version("torch"),
}))
"""


def run(path: Path, root: Path) -> list[str]:
    """Run a notebook in a fresh kernel; store it and export from it if every cell passed."""
    notebook, begin = read(path), time.monotonic()
    notebook.cells.append(nbformat.v4.new_code_cell(TOOK))
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        extra_arguments=["--IPKernelApp.log_level=40"],
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError) as error:
        return [f"{path.name}: a cell failed, nothing was written.\n{error}"]
    took = json.loads(notebook.cells.pop().outputs[0].text)
    took = {"seconds": round(time.monotonic() - begin), **took}
    normalise(notebook)
    shrink_pictures(notebook)
    notebook.metadata["mllama_lite"] = {
        "source_sha256": source_hash(notebook),
        "took": took,
    }
    if problems := run_problems(notebook):
        return [f"{path.name}: {p}; nothing was written" for p in problems]
    only = set(exported(notebook, path.name))
    nbformat.write(notebook, path)
    return [f"{path.name}: {p}" for p in page_problems(notebook)] + export(root, only)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument(
        "--export", action="store_true", help="write the modules (the default)"
    )
    mode.add_argument(
        "--check", action="store_true", help="compare modules and notebooks"
    )
    mode.add_argument(
        "--run", nargs="*", metavar="NAME", help="run notebooks, then export"
    )
    mode.add_argument(
        "--update", action="store_true", help="carry edits of modules into notebooks"
    )
    options = parser.parse_args(arguments)

    known = {p.stem: p for p in notebook_paths(root)}
    names = [Path(name).stem for name in options.run or known]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no notebook {', '.join(unknown)}; there are {', '.join(known)}")

    problems = []
    try:
        if options.run is not None:
            for name in names:
                print(f"running {name}", flush=True)
                problems += run(known[name], root)
        elif options.update:
            problems = update(root)
        else:
            problems = check(root) if options.check else export(root)
    except ValueError as error:  # a marker that can't be followed
        problems.append(str(error))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
