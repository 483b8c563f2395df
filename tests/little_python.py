"""The page's small part of Python in Node.js, for the tests that compare it."""

import json
import subprocess
from pathlib import Path

import pytest

import live


class LittlePython:
    """The page's scripts in a process of Node's: called with a command and its arguments."""

    def __init__(self):
        driver = pytest.importorskip(
            "playwright._impl._driver", reason="needs Node.js, which playwright brings"
        )
        node, _ = driver.compute_driver_executable()
        self.process = subprocess.Popen(
            [node, Path(__file__).parent / "little_python.js", live.LIVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def __call__(self, command, **given):
        self.process.stdin.write(json.dumps({"command": command, **given}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the page's Python ended at {given}"
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)

    def results(self, sources):
        return self("results", sources=sources)
