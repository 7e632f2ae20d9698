"""``python -m farthing.cli``."""

import sys

from farthing.cli import main

sys.exit(main())
