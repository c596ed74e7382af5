"""``python -m sparkdist``: see :mod:`sparkdist.commands`."""

import sys

from sparkdist.commands import main

if __name__ == "__main__":
    sys.exit(main())
