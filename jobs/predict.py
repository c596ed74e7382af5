"""Score data with a saved model with spark-submit.

spark-submit jobs/predict.py --model model --data a9a-test --output predictions.parquet

The same as ``python -m sparkdist predict``, with the configuration of spark-submit.
"""

from __future__ import annotations

import sys

from sparkdist import commands


def main(arguments: list[str] | None = None) -> int:
    """Run the job."""
    return commands.run("predict", arguments, prog="predict.py", about=__doc__)


if __name__ == "__main__":
    sys.exit(main())
