"""Run several jobs in one session, each as if spark-submit had been given it.

spark-submit tests/several_jobs.py '[["jobs/train.py", "--data", "a9a"], ["jobs/doctor.py"]]'

What each prints stands below ``[its number]`` and above ``[exit status ...]``; the status of the
last is the program's.
"""

from __future__ import annotations

import json
import runpy
import sys

from pyspark.sql import SparkSession


def tell(line: str) -> None:
    """Print a line."""
    sys.stdout.write(f"{line}\n")


def run(job: str, *arguments: str) -> object:
    """Give the exit status of a job."""
    sys.argv = [job, *arguments]
    try:
        runpy.run_path(job, run_name="__main__")
    except SystemExit as end:
        return end.code
    return 0


def main() -> object:
    """Run them all."""
    SparkSession.stop = lambda session: None  # type: ignore[method-assign]  # the next one has it
    status: object = 0
    for number, job in enumerate(json.loads(sys.argv[1])):
        tell(f"[{number}]")
        status = run(*job)
        tell(f"[exit status {status}]")
    return status


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[arg-type]
