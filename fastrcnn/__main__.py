"""`python -m fastrcnn`, for torchrun."""

import sys

from fastrcnn.cli import main

if __name__ == "__main__":
    sys.exit(main())
