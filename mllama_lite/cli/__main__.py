"""`python -m mllama_lite.cli` is the command line `mllama-lite` as well."""

import sys

from mllama_lite.cli import main


if __name__ == "__main__":
    sys.exit(main())
