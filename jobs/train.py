"""Train a model with spark-submit: read, minimise, save, and say in a table what came out.

spark-submit jobs/train.py --data a9a --objective logistic --l2 1e-3 --output model

The same as ``python -m sparkdist train``, with the configuration of spark-submit.
"""

from __future__ import annotations

import sys

from sparkdist import commands


def main(arguments: list[str] | None = None) -> int:
    """Run the job; the exit status is 0 only if the method converged."""
    return commands.run("train", arguments, prog="train.py", about=__doc__)


if __name__ == "__main__":
    sys.exit(main())
