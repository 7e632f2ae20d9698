"""``python -m farthing``: the command line."""

import sys

from farthing.cli import main

if __name__ == "__main__":
    sys.exit(main())
