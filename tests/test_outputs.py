"""The comparison of notebooks notices what is wrong, and passes what is only rounding.

One small notebook is run by the line of the Makefile that runs the book's. Each cell
prints what it is given, and the output it is stored with is another.
"""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from outputs import adopt

ROOT = Path(__file__).resolve().parent.parent
SHARES = {"absolute": 0.02}
ERRORS = {"relative": 0.1}
COUNTS = {"absolute": 0.02, "counts": 5}

# What a line of the notebook says, what a run prints, and the tolerance stated.
WRONG = {
    "a digit before the decimal point": ("share 0.94", "share 1.94", SHARES),
    "a digit after it": ("share 0.94", "share 0.74", SHARES),
    "a digit without a tolerance": ("share 0.94", "share 0.95", {}),
    "a sign": ("change -0.01", "change 0.01", SHARES),
    "a sign of a large number": ("change 1.50", "change -1.50", ERRORS),
    "an exponent": ("error 1.2e-06", "error 1.2e-05", ERRORS),
    "the sign of an exponent": ("error 1.2e-06", "error 1.2e+06", ERRORS),
    "not a number": ("share 0.94", "share nan", SHARES),
    "infinity": ("share 0.94", "share inf", SHARES),
    "not a number under a limit": (
        "off 1e-06 (limit 1e-05)",
        "off nan (limit 1e-05)",
        {},
    ),
    "above the limit": ("off 1e-06 (limit 1e-05)", "off 2e-05 (limit 1e-05)", {}),
    "below zero": ("off 1e-06 (limit 1e-05)", "off -1e-06 (limit 1e-05)", {}),
    "another limit": ("off 1e-06 (limit 1e-05)", "off 1e-06 (limit 1e-04)", SHARES),
    "no limit": ("off 1e-06 (limit 1e-05)", "off 1e-06", {}),
    "within a limit that was passed": (
        "off 3 (limit 1e-05)",
        "off 0 (limit 1e-05)",
        {},
    ),
    "a word": ("right 0.94", "wrong 0.94", SHARES),
    "a verdict": ("equal: True", "equal: False", SHARES),
    "a shape": ("torch.Size([2, 3])", "torch.Size([3, 2])", SHARES),
    "a count": ("7 tokens", "8 tokens", SHARES),
    "a count far off": ("284 right", "278 right", COUNTS),
    "a total": ("284 of 300", "284 of 301", COUNTS),
    "some for none": ("0 of 300 wrong", "1 of 300 wrong", COUNTS),
    "a percentage": ("26% differ", "29% differ", SHARES),
    "a percentage for none": ("0.0% differ", "0.1% differ", ERRORS),
    "two numbers in the wrong places": ("0.94 0.55", "0.55 0.94", SHARES),
    "counts in the wrong places": ("[284,300]", "[300,284]", COUNTS),
    "a missing number": ("0.94 0.55", "0.94", SHARES),
    "one number more": ("0.94", "0.94 0.55", SHARES),
    "a missing line": ("first 0.94\nlast 0.55", "first 0.94", SHARES),
    "one line more": ("first 0.94", "first 0.94\nlast 0.55", SHARES),
    "nothing printed": ("share 0.94", None, SHARES),
    "something printed": (None, "share 0.94", SHARES),
    "spaces": ("a  1", "a 1", {}),
    "another line": ("a 0.94\nb 0.55", "a 0.95\nb 0.55", {**SHARES, "lines": "b"}),
}
FINE = {
    "as it was": ("share 0.94", "share 0.94", {}),
    "below the limit": ("off 1.2e-06 (limit 1e-05)", "off 9.8e-06 (limit 1e-05)", {}),
    "no difference": ("off 1.2e-06 (limit 1e-05)", "off 0.0e+00 (limit 1e-05)", {}),
    "a share": ("shares 0.94 0.55", "shares 0.95 0.53", SHARES),
    "a percentage": ("26% differ", "27% differ", SHARES),
    "a rounding error": ("error 1.20e-06", "error 1.15e-06", ERRORS),
    "minus zero": ("change -0.00", "change 0.00", SHARES),
    "one digit more, in its column": ("loss  9.99", "loss 10.01", ERRORS),
    "a range": ("0.764-0.991", "0.774-0.981", SHARES),
    "a count": ("284 of 300", "281 of 300", COUNTS),
    "a list of counts": ("[284, 5], 7", "[281, 4], 8", COUNTS),
    "a thousand": ("1,002 right", "999 right", COUNTS),
    "the line that may": ("a 0.94\nb 0.55", "a 0.94\nb 0.54", {**SHARES, "lines": "b"}),
    "an address": ("<A at 0x7f0012345678>", "<A at 0x7f0087654321>", {}),
}


def cell(stored, code, tolerance=None, kind="stream"):
    outputs = []
    if stored is not None and kind == "stream":
        outputs = [new_output("stream", name="stdout", text=stored + "\n")]
    elif stored is not None:
        outputs = [new_output("execute_result", data=stored, execution_count=1)]
    metadata = {"mllama_lite": {"tolerance": tolerance}} if tolerance else {}
    return new_code_cell(code, outputs=outputs, metadata=metadata, execution_count=1)


def printing(stored, text, tolerance):
    return cell(stored, "pass" if text is None else f"print({text!r})", tolerance)


HTML = """from IPython.display import HTML
HTML({!r})"""
OTHERS = {
    "an error instead of output": cell("1.5", "print(1 / 0)", SHARES),
    "the result of a cell": cell({"text/plain": "'four'"}, "'five'", SHARES, "result"),
    "a number in a table": cell(
        {
            "text/html": "<td>0.94</td>",
            "text/plain": "<IPython.core.display.HTML object>",
        },
        HTML.format("<td>0.84</td>"),
        SHARES,
        "result",
    ),
    "a result too many": cell(None, "1.5", SHARES),
    "an error that did not come": new_code_cell(
        "x = 1",
        outputs=[new_output("error", ename="ValueError", evalue="no", traceback=[])],
        metadata={"tags": ["raises-exception"]},
        execution_count=1,
    ),
}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    """What the command of `make test` says of each cell: "passed" or "failed"."""
    folder = tmp_path_factory.mktemp("planted")
    cells = {("wrong", name): printing(*case) for name, case in WRONG.items()}
    cells |= {("wrong", name): planted for name, planted in OTHERS.items()}
    cells |= {("fine", name): printing(*case) for name, case in FINE.items()}
    nbformat.write(new_notebook(cells=list(cells.values())), folder / "planted.ipynb")

    makefile = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    (line,) = re.findall(
        r"^\t\$\(BIN\)/python (.* -p tests\.outputs .*)$", makefile, re.M
    )
    arguments = (
        line.replace("$(WORKERS)", "0").replace(" notebooks", f" {folder}").split()
    )
    report = folder / "report.xml"
    command = [
        sys.executable,
        *arguments,
        f"--junitxml={report}",
        "-p",
        "no:cacheprovider",
    ]
    subprocess.run(command, cwd=ROOT, capture_output=True)
    found = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failed = case.find("failure") is not None or case.find("error") is not None
        found[case.get("name")] = "failed" if failed else "passed"
    assert len(found) == len(cells)
    return {key: found[f"Cell {i}"] for i, key in enumerate(cells)}


@pytest.mark.parametrize("name", [*WRONG, *OTHERS])
def test_what_is_wrong_is_noticed(verdicts, name):
    assert verdicts["wrong", name] == "failed"


@pytest.mark.parametrize("name", FINE)
def test_what_is_only_rounding_passes(verdicts, name):
    assert verdicts["fine", name] == "passed"


def test_a_line_that_agrees_becomes_the_stored_one():
    old, new = "a  9.99 b 1\nc 0.5", "a 10.01 b 1\nc 0.7"
    assert adopt(old, new, relative=0.01) == "a  9.99 b 1\nc 0.7"
