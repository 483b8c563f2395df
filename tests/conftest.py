"""What all tests share: what stands in for a witness, and the table "What is proven".

A test that measures a difference hands it to the fixture `proof`, which compares it with
its limit and with the row of book/proven.md. `pytest --write-proof` writes that page.
"""

import json
import platform
import re
import shutil
import signal
import sys
import warnings
from dataclasses import dataclass
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import pytest
import torch

import live

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "book" / "proven.md"
FUZZ = ROOT / "tests" / "fuzz.json"


@dataclass(frozen=True)
class Row:
    """One line of the table; `difference` and `limit` as they are printed."""

    part: str
    against: str
    inputs: str
    difference: str
    limit: str
    test: str


def pytest_addoption(parser):
    parser.addoption(
        "--without-witnesses",
        action="store_true",
        help="skip the tests that need Meta's code or Hugging Face's, which are not installed",
    )
    parser.addoption(
        "--write-proof",
        action="store_true",
        help="write book/proven.md from what is measured",
    )


def pytest_configure(config):
    config.proof_rows = []
    # A shell that starts the tests in the background has them ignore Ctrl-C, and with them
    # every program whose answer to Ctrl-C they test.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if config.getoption("--without-witnesses"):
        sys.meta_path.append(Witnesses())
        import reference

        reference.tokenizer_path = Missing("llama_models")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--without-witnesses"):
        for item in items:
            if item.get_closest_marker("witness"):
                item.add_marker(pytest.mark.skip(reason="needs a witness"))


class Witnesses(MetaPathFinder, Loader):
    """Where a witness is not installed, puts something in its place that skips the test."""

    NAMES = {
        "accelerate",
        "datasets",
        "efficientnet_lite_pytorch",
        "fairscale",
        "llama_models",
        "peft",
        "timm",
        "torchvision",
        "transformers",
    }

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.NAMES:
            return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Missing(spec.name)

    def exec_module(self, module):
        pass


class Missing(ModuleType):
    """A witness, or something of it, that may be imported but not used."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return Missing(f"{self.__name__}.{name}")

    def __call__(self, *args, **options):
        pytest.skip(f"needs {self.__name__.split('.')[0]}")


def read_page():
    """Rows of the page, by part and what it is compared with."""
    if not PAGE.is_file():
        return {}
    rows = {}
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) == 6 and cells[5].startswith("`"):
            row = Row(*(cell.strip("`") for cell in cells))
            rows[row.part, row.against] = row
    return rows


def of_one_size(before: float, now: float, limit: float) -> bool:
    """Whether a figure is of the order of magnitude that the page says.

    Rounding differs from one processor to the next: the lengths of a training's gradients
    by ten times between AVX-512 and AVX2. Where both figures are below a hundredth of the
    limit, rounding is all that they show.
    """
    return max(before, now) <= max(30 * min(before, now), limit / 100)


@pytest.fixture
def proof(request):
    """Hold a measured difference against its limit and against the book's page.

    Called with (part, against, inputs, difference, limit). The page is current if it has
    the same row and its figure is still of that size.
    """

    def check(part, against, inputs, difference, limit):
        test = f"{Path(request.node.fspath).name}::{request.node.name.split('[')[0]}"
        shown = f"{difference:{'.3g' if 0.01 < difference < 1000 else '.1e'}}"
        if not difference or isinstance(difference, int):
            shown = str(difference)
        row = Row(part, against, inputs, shown, f"{limit:g}", test)
        assert difference <= limit, f"{part} against {against}: {difference} > {limit}"
        request.config.proof_rows.append(row)
        if request.config.getoption("--write-proof"):
            return
        known = read_page().get((part, against))
        hint = "run make proof"
        assert known, f"book/proven.md has no row for {part} against {against}: {hint}"
        assert (known.inputs, known.limit, known.test) == (inputs, row.limit, test), (
            known,
            row,
            hint,
        )
        before, now = float(known.difference), float(difference)
        assert of_one_size(before, now, limit), (
            f"book/proven.md says {before} for {part} against {against}, not {now}: {hint}"
        )

    return check


def pytest_sessionfinish(session):
    if session.config.getoption("--write-proof") and session.config.proof_rows:
        rows = {(row.part, row.against): row for row in session.config.proof_rows}
        PAGE.write_text(page(list(rows.values())), encoding="utf-8")


# The page's tables and the test files whose rows they hold, in this order; within a file
# the rows stay in its order.
TABLES = {
    "The model": (
        "whole_model",
        "inference",
        "tokenizer",
        "parts",
        "tiles",
        "checkpoint",
    ),
    "Training and adapters": (
        "small_model",
        "pretrain",
        "lora",
        "finetune",
        "finetuning_benchmark",
        "memory",
    ),
    "Other roads": (
        "llama4",
        "experts",
        "vit",
        "prepended",
        "guard",
        "sound",
        "hearing",
    ),
    "The model in the page": ("live",),
}
HEAD = """| Part | Compared with | Inputs | Largest difference | Limit | Test |
|---|---|---|---|---|---|
"""


def page(rows):
    """The page as Markdown."""
    from importlib.metadata import version

    import llama_models  # noqa: F401  (its version is part of the claim)

    versions = ", ".join(
        f"{name} {version(name)}"
        for name in ("llama-models", "transformers", "torch", "tiktoken")
    )
    versions = re.sub(r"\+\w+", "", versions)
    by_file = {}
    for row in rows:
        line = (
            f"| {row.part} | {row.against} | {row.inputs} "
            f"| `{row.difference}` | `{row.limit}` | `{row.test}` |\n"
        )
        by_file.setdefault(row.test[5:].split(".")[0], []).append(line)
    tables = {
        title: HEAD + "".join("".join(by_file.pop(file, [])) for file in files)
        for title, files in TABLES.items()
    }
    assert not by_file, f"no table of the page has a place for {list(by_file)}"
    figures = json.loads(FUZZ.read_text(encoding="utf-8"))
    return PAGE_TEXT.format(
        fuzz=fuzz_text(figures),
        versions=versions,
        machine=f"{platform.system()} on {platform.machine()}, CPU, "
        f"Python {platform.python_version()}",
        tables="\n".join(f"## {title}\n\n{table}" for title, table in tables.items()),
    )


def fuzz_text(figures: dict[str, dict]) -> str:
    """The page's words and table about damaged files, from what `make fuzz` has counted."""
    rows = "".join(
        f"| {name.replace('_', ' ')} | {f['inputs']:,} | {f['findings']} | "
        f"{f['slowest']} | {f['memory']:,} |\n"
        for name, f in figures.items()
    )
    return FUZZ_TEXT.format(
        inputs=sum(f["inputs"] for f in figures.values()),
        hours=sum(f["seconds"] for f in figures.values()) / 3600,
        rows=rows,
    )


FUZZ_TEXT = """## Damaged files

`make test` gives 300 damaged files to each reader of a stranger's file; the table below has what
`make fuzz` (tools/fuzz.py) counted when it ran long: {inputs:,} inputs in {hours:.1f} hours,
guided by the lines of code that they reach. A finding is an input that ends in neither an answer
nor an `InputError`, or takes more than 20 seconds or 3 GiB; a reader's run ends at its first.
Seconds are whole ones of the slowest input, memory is the most that the process held, PyTorch
included.

| Reader | Inputs | Findings | Slowest, s | Memory, MB |
|---|---|---|---|---|
{rows}"""


PAGE_TEXT = """# What is proven

Nothing here was checked with Meta's weights, and nothing on a GPU: parameters are random,
or those of the small model of chapter 11, and all was computed on a CPU.

Every row is a comparison that `make test` makes anew. This page is written by the run
that measured the figures (`make proof`), and the tests fail when a row is missing, when
its inputs or its limit have changed, or when a figure is no longer of the size it says:
thirty times more or less, unless it stays below a hundredth of its limit.

Measured with {versions}; {machine}. Differences are the largest absolute difference
over all inputs, in fp32 unless the row says otherwise; where things are counted, the
number of inputs that differ. In the first table all parameters, gates included, are random
and none is zero, unless the row says otherwise.

{tables}
"Meta" is the code of the package llama-models, run live. "transformers, corrected" has
its two deviations from Meta repaired from outside: vision states kept before their
blocks, and attention output zeroed for tokens that see no image. Chapters 6 to 8 show
both uncorrected.

{fuzz}"""


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def browser():
    """Chromium or Chrome, driven by Playwright; where there is none, a warning says so."""
    api = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        message = f"NO BROWSER: no page is tested in one; install one of {BROWSERS}"
        warnings.warn(message, stacklevel=1)
        pytest.skip(message)
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=found, args=flags)


FIGURE = '<div class="mllama-figure" data-figure="{name}"></div>'


@pytest.fixture(scope="session")
def live_site(tmp_path_factory):
    """A folder with the engine, the figures and the packed model."""
    folder = tmp_path_factory.mktemp("live")
    live.write_site(folder)
    return folder


class FigurePage:
    """A figure of the book on a page of its own."""

    def __init__(self, page, root):
        self.page, self.root = page, root

    def values(self):
        """What the figure gives to `figure.values`."""
        return self.root.evaluate("root => root.figure.numbers()")

    def computed(self):
        """The same, once there is something: null while it computes."""
        self.page.wait_for_function(
            "root => root.figure.numbers() !== null", arg=self.root.element_handle()
        )
        return self.values()

    def words(self):
        return self.root.locator(".figure-words").inner_text()

    def control(self, label):
        return self.root.get_by_label(label, exact=True)

    def set(self, label, value):
        """Put a slider or a text field to a value, or choose an option, or tick a box."""
        control = self.control(label)
        kind = control.evaluate("c => c.type")
        if kind.startswith("select"):
            control.select_option(value)
        elif kind == "checkbox":
            control.set_checked(value)
        else:
            control.fill(str(value))

    def press(self, label):
        self.root.get_by_role("button", name=label).click()


@pytest.fixture(scope="session")
def first_page(browser):
    """One page for all figures, one after another: a new one takes longer than what it shows."""
    return browser.new_context().new_page()


@pytest.fixture
def figure(first_page, live_site):
    """A function that opens a figure by its name; fails the test if a script fails."""
    pages, said = [], []

    def opened(name):
        page = first_page.context.new_page() if pages else first_page
        pages.append(page)
        page.set_viewport_size({"width": 900, "height": 900})
        page.on("pageerror", complain)
        page.on("console", complain)
        page.goto(live.write_page(live_site, name, FIGURE.format(name=name)))
        page.wait_for_selector(".mllama-figure[data-ready]")
        return FigurePage(page, page.locator(".mllama-figure"))

    def complain(message):
        said.append(getattr(message, "text", str(message)))

    yield opened
    for page in pages:
        page.remove_listener("pageerror", complain)
        page.remove_listener("console", complain)
        if page is not first_page:
            page.close()
    assert said == []


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield
