"""Runs the notebooks and compares what they print with what they show: a plugin for pytest.

    python -m pytest -p tests.outputs notebooks

nbval runs the cells and compares their outputs character for character. Here a printed
number may differ where it is a rounding error or depends on one, and the cell says so:

- `1.2e-06 (limit 1e-05)`: any number from 0 to the limit agrees with any other; the limit
  itself stays exact.
- The cell's metadata `"mllama_lite": {"tolerance": {...}}`: a number b agrees with the
  stored a if |a - b| <= absolute + relative * |a|. It holds for numbers with a point or an
  exponent and for percentages, as shares of 1; a whole number agrees if it is at most
  `counts` away, but not a total (`of 300`), and none is never some. What is not given is 0.
  With `lines`, it holds for the lines that contain this text.

A sign is never a matter of rounding, and the text between the numbers stays as it is, but
for the spaces that line numbers up. nbval leaves out the bytes of PNG and JPEG.
"""

import re
from pathlib import Path

from nbval.plugin import IPyNbCell, IPyNbFile

# A sign counts where no number ends before it: 0.7-0.9 is a range.
NUMBER = re.compile(
    r"((?:(?<![\w.])[-+])?(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?(?:e[-+]?\d+)?)"
)
SPACES = re.compile(r"^ +| +$")
LIMIT = " (limit "
PICTURES = ("image/png", "image/jpeg")
WIDGET = "application/vnd.jupyter.widget-view+json"  # never stored
# Seconds for a kernel to start, and to hand over an output: a machine may be busy.
PATIENCE = 300


def pytest_configure(config):
    config.option.nbval_current_env = True
    config.option.nbval_kernel_startup_timeout = PATIENCE


def pytest_collect_file(file_path, parent):
    if file_path.suffix == ".ipynb":
        return Notebook.from_parent(parent, path=file_path)


class Notebook(IPyNbFile):
    def get_sanitize_files(self):
        return [str(Path(__file__).with_name("nbval.cfg"))]

    def collect(self):
        for item in super().collect():
            cell = Cell.from_parent(
                self,
                name=item.name,
                cell_num=item.cell_num,
                cell=item.cell,
                options=item.options,
            )
            cell.output_timeout = PATIENCE
            yield cell


class Cell(IPyNbCell):
    def compare_outputs(self, test, ref, skip_compare=None):
        """nbval's comparison, after each number that agrees was replaced by the stored one."""
        test, ref = (
            self.sanitize_outputs([without_pictures(output) for output in outputs])
            for outputs in (test, ref)
        )
        tolerance = self.cell.metadata.get("mllama_lite", {}).get("tolerance", {})
        for new, old in zip(test, ref):
            if "text" in new and "text" in old:
                new.text = adopt(old.text, new.text, **tolerance)
            for mime in new.get("data", {}).keys() & old.get("data", {}).keys():
                if isinstance(new.data[mime], str) and isinstance(old.data[mime], str):
                    new.data[mime] = adopt(old.data[mime], new.data[mime], **tolerance)
        return super().compare_outputs(test, ref, skip_compare)


def without_pictures(output: dict) -> dict:
    """An output whose PNG and JPEG say only that they are there, and without controls.

    To look for paths in their base64 would take minutes: each slash may begin one.
    """
    data = output.get("data", {}).items()
    short = {
        mime: "" if mime in PICTURES else content
        for mime, content in data
        if mime != WIDGET
    }
    return output | {"data": short} if data else output


def adopt(old: str, new: str, lines: str = "", **tolerance: float) -> str:
    """A text with its numbers replaced by those of another where they agree.

    Args:
        old: the text as it is stored.
        new: the text as it came now.
        lines: what a line contains if the tolerance holds for it.
        tolerance: `absolute`, `relative` and `counts`, see above.

    Returns:
        `new`; a line with as many numbers and the same text between them as that line of
        `old` has its numbers that agree.
    """
    old_lines, new_lines = old.split("\n"), new.split("\n")
    if len(old_lines) != len(new_lines):
        return new
    return "\n".join(
        adopt_line(a, b, **(tolerance if lines in a else {}))
        for a, b in zip(old_lines, new_lines)
    )


def adopt_line(old: str, new: str, **tolerance: float) -> str:
    # Each a list of text, number, text, number, ..., text.
    old_parts, new_parts = NUMBER.split(old), NUMBER.split(new)
    texts = [[SPACES.sub(" ", part) for part in p[::2]] for p in (old_parts, new_parts)]
    if texts[0] != texts[1]:
        return new
    for i in range(1, len(old_parts), 2):
        a, b = old_parts[i], new_parts[i]
        if a == b:
            continue
        before, after = old_parts[i - 1], old_parts[i + 1]
        limited = after == LIMIT and within(a, b, old_parts[i + 2])
        if limited or agree(a, b, before, after, **tolerance):
            new_parts[i - 1 : i + 2] = old_parts[i - 1 : i + 2]
    return "".join(new_parts)


def value(number: str) -> float:
    return float(number.replace(",", ""))


def within(a: str, b: str, limit: str) -> bool:
    return value(a) <= value(limit) and 0 <= value(b) <= value(limit)


def agree(
    a: str,
    b: str,
    before: str,
    after: str,
    absolute: float = 0,
    relative: float = 0,
    counts: int = 0,
) -> bool:
    """Whether a number b may stand for the stored a; the text around it tells what it is."""
    x, y = value(a), value(b)
    if before.endswith(LIMIT) or x and y and (x < 0) != (y < 0):
        return False
    percent = after.lstrip().startswith("%")
    if not percent and not set(a + b) & set(".e"):
        exact = before.endswith("of ") or not x or not y
        return abs(x - y) <= (0 if exact else counts)
    unit = 0.01 if percent else 1
    return abs(x - y) * unit <= absolute + relative * abs(x) * unit + 1e-12
