"""Objectives that count, and faults around an objective: oracles for runs with the model server."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pyspark import TaskContext
from pyspark.sql import SparkSession

from sparkdist import Dataset
from sparkdist.blocks import Array, Block, Partial
from sparkdist.client import HttpClient
from sparkdist.layout import Layout
from sparkdist.objectives import Objective
from sparkdist.result import Result


class Tally(Objective):
    """Counts rows: a row's only feature is its number, and its gradient is -1 there.

    With ``sgd(1.0)``, ``asp()`` and batches of one row, w says how often each row has counted: 0 is
    a lost push, 2 a doubled one.  Under ``bsp()`` with P workers a row counts 1 / P.  Small
    integers, and their halves, add exactly in any order: the check is ``==``.
    """

    def __init__(self, n_rows: int):
        self.n_rows = n_rows

    @property
    def own_layout(self) -> Layout:
        return Layout(((None, (self.n_rows,)),))

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        grad = np.zeros_like(w)
        np.subtract.at(grad, block.X[:, 0].astype(int), 1.0)
        return Partial(0.0, grad, float(block.weight.sum()))


def numbered(spark: SparkSession, n_rows: int, first: int = 0) -> Dataset:
    """Rows for a Tally in two partitions, numbered from ``first``."""
    numbers = np.arange(first, first + n_rows, dtype=float)
    return Dataset.from_arrays(spark, numbers[:, None], np.zeros(n_rows), n_partitions=2)


def balanced(result: Result) -> bool:
    """Whether every push that was received is accounted for: requirement R50."""
    counts = dict(result.counts)
    return counts.pop("received") == sum(counts.values())


class Around(Objective):
    """Another objective, with something done before each evaluation in a task."""

    def __init__(self, objective: Objective):
        self.objective = objective

    @property
    def own_layout(self) -> Layout | None:
        return self.objective.own_layout

    def before(self, partition: int, attempt: int) -> None:
        """Do it."""

    def value_and_grad(self, w: Array, block: Block) -> Partial:
        context = TaskContext.get()
        if context is not None:
            self.before(context.partitionId(), context.attemptNumber())
        return self.objective.value_and_grad(w, block)


class Paced(Around):
    """Takes its time over each batch, so that the driver can look several times in a run."""

    def __init__(self, objective: Objective, seconds: float):
        super().__init__(objective)
        self.seconds = seconds

    def before(self, partition: int, attempt: int) -> None:
        time.sleep(self.seconds)


class From(Around):
    """Calls ``disturb`` on partition 1 from a task's batch ``number`` on, each time."""

    def __init__(self, objective: Objective, number: int, disturb: Callable[[], None]):
        super().__init__(objective)
        self.number, self.disturb, self.seen = number, disturb, 0

    def before(self, partition: int, attempt: int) -> None:
        self.seen += 1
        if partition == 1 and self.seen > self.number:
            self.disturb()


class AfterPush(Around):
    """Calls ``disturb`` on partition 1 once: when push ``clock`` is answered, before all else.

    A flag file says that it has happened: a task that runs again is left alone.
    """

    def __init__(self, objective: Objective, clock: int, flag: Path, disturb: Callable[[], None]):
        super().__init__(objective)
        self.clock, self.flag, self.disturb = clock, flag, disturb

    def before(self, partition: int, attempt: int) -> None:
        if partition == 1 and not self.flag.exists() and HttpClient.push.__name__ == "push":
            self._arm()

    def _arm(self) -> None:
        """Replace the client's push in the process of this task, until it has done its work."""
        push = HttpClient.push

        def disturbed(client: HttpClient, partition: int, clock: int, *rest: Any, **named: Any):
            answer = push(client, partition, clock, *rest, **named)
            if clock == self.clock:
                HttpClient.push = push
                self.flag.touch()
                self.disturb()
            return answer

        HttpClient.push = disturbed


def lose_the_route() -> None:
    """Let no request out of this process any more, as when a network is gone."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH))

    # For good: after the exception that follows from it, PySpark ends the process.
    HttpClient._once = unreachable


def wait_for(path: Path) -> None:
    """Wait until a file is there, for at most a minute."""
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        time.sleep(0.01)
