"""`python -m mllama_lite` is the command line `mllama-lite`."""

import sys

from mllama_lite.cli import main


if __name__ == "__main__":
    sys.exit(main())
