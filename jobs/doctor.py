"""Look for what would keep sparkdist from working under this spark-submit, and say what to do.

spark-submit --master spark://host:7077 --conf spark.executor.memory=4g jobs/doctor.py

The same as ``python -m sparkdist doctor``, with the configuration of spark-submit.
"""

from __future__ import annotations

import sys

from sparkdist import commands


def main(arguments: list[str] | None = None) -> int:
    """Run the job; the exit status is 1 if something must be fixed."""
    return commands.run("doctor", arguments, prog="doctor.py", about=__doc__)


if __name__ == "__main__":
    sys.exit(main())
