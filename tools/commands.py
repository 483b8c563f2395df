"""Write the book's page of commands from what the commands say about themselves.

python tools/commands.py book/commands.md
"""

import os
import subprocess
import sys
from pathlib import Path

from mllama_lite.cli import COMMANDS

HEAD = """# Commands

What `mllama-lite` and its commands print with `--help`. Input that can't be used is refused in one
sentence on standard error, with exit code 2. Without `--model` it is the small trained model, which
ships with the package.

```text
{program}
```
"""
SECTION = """
## {name}

```text
{text}
```
"""


def said(*words: str) -> str:
    """What the program prints for --help, in lines of at most 80 characters."""
    command = [sys.executable, "-m", "mllama_lite", *words, "--help"]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    done.check_returncode()
    return done.stdout.rstrip()


def page() -> str:
    """The page as Markdown."""
    parts = [HEAD.format(program=said())]
    parts += [SECTION.format(name=name, text=said(name)) for name in COMMANDS]
    return "".join(parts)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
