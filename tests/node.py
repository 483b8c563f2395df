"""A script in a process of Node's, for the tests that compare the page with the package."""

import json
import subprocess
from pathlib import Path

import pytest


class Node:
    """Called with a command and its arguments; answers with what the script answers.

    Args:
        script: a file beside this one; it reads a line of JSON and writes one, in turns.
        arguments: of the script.
    """

    def __init__(self, script, *arguments):
        driver = pytest.importorskip(
            "playwright._impl._driver", reason="needs Node.js, which playwright brings"
        )
        node, _ = driver.compute_driver_executable()
        self.script = script
        self.process = subprocess.Popen(
            [node, Path(__file__).parent / script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def __call__(self, command, **given):
        self.process.stdin.write(json.dumps({"command": command, **given}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"{self.script} ended at {command} {str(given)[:500]}"
        return json.loads(answer)

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)
