"""The entry point of `python -m fastrcnn` and `torchrun -m fastrcnn`."""

import sys

from fastrcnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
