"""Faults to inject, and what a disturbed run must be equal to."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.testing import assert_allclose
from pyspark import TaskContext
from pyspark.sql import SparkSession

from sparkdist import L2, Dataset, Logistic, Result, minimize
from sparkdist.blocks import Array, Block, Partial


class Disturbed(Logistic):
    """Logistic loss whose first evaluation on partition 1 calls ``disturb`` once.

    A flag file says that it has happened: a task that runs again is left alone.
    """

    def __init__(self, flag: Path, disturb: Callable[[], None]):
        self.flag, self.disturb = flag, disturb

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        context = TaskContext.get()
        if context is not None and context.partitionId() == 1 and not self.flag.exists():
            self.flag.touch()
            self.disturb()
        return super().value_and_grad(w, block)


def fail() -> None:
    """Fail this task."""
    raise RuntimeError("disturbed")


def executor_pid() -> int:
    """Process id of the executor's JVM: a worker's parent is the daemon, whose parent it is."""
    daemon = os.getppid()
    return int(Path(f"/proc/{daemon}/stat").read_text().rpartition(")")[2].split()[1])


def kill_executor() -> None:
    """Kill the executor that runs this task."""
    os.kill(executor_pid(), signal.SIGKILL)


def solve(data: Dataset, objective: Any = "logistic", **options: Any) -> Result:
    """Minimise A-L2 for a few iterations, which is enough to see a difference."""
    return minimize(objective, data, penalty=L2(1e-3), max_iter=6, progress=False, **options)


def assert_same(found: Result, expected: Result, deterministic: bool) -> None:
    """Equal bit for bit, or to 1e-12."""
    if deterministic:
        assert found.fun == expected.fun
        assert np.array_equal(found.x, expected.x)
    assert_allclose(found.fun, expected.fun, rtol=1e-12)
    assert_allclose(found.x, expected.x, rtol=1e-9, atol=1e-12)
    assert found.passes == expected.passes


def executors(data: Dataset) -> list[int]:
    """Executor that answers for each partition."""
    return data.visit(lambda partition, blocks: executor_pid())


def wait_for_executors(spark: SparkSession, count: int) -> None:
    """Wait until executors have registered, for at most a minute."""
    tracker = spark.sparkContext._jsc.sc().statusTracker()
    deadline = time.monotonic() + 60
    while len(tracker.getExecutorInfos()) < count + 1:  # the driver is one
        assert time.monotonic() < deadline, "the executors did not come"
        time.sleep(0.1)
