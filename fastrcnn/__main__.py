"""Entry point of `python -m fastrcnn`, which torchrun uses."""

import sys

from fastrcnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
