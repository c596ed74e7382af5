"""Train: one Spark job whose tasks are the workers of a run with the model server."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from pyspark import InheritableThread, SparkContext

from sparkdist.blocks import Array, Block
from sparkdist.client import Address, Entry, Gradient, HttpClient, unreachable
from sparkdist.errors import BadData, PassFailed, ServerUnavailable
from sparkdist.objectives import Objective
from sparkdist.spark.failures import told_plainly
from sparkdist.spark.ingest import Handle
from sparkdist.spark.residency import open_blocks
from sparkdist.spark.transport import acknowledge_at_once
from sparkdist.workers import Batches, downpour

__all__ = ["BlockUnits", "Plan", "refuse_unreachable", "run_job", "work"]

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Plan:
    """What every worker of a run is told; it travels in the closure of the job."""

    address: Address
    entries: tuple[Entry, ...]
    objective: Objective
    dtype: str
    batch_size: int
    epochs: int
    seed: int
    n_fetch: int
    n_push: int
    rate: float
    patience: float


class BlockUnits:
    """The units of a worker: n_push batches each, epoch after epoch."""

    def __init__(self, plan: Plan, batches: Batches):
        self._plan, self._batches = plan, batches
        self._per_epoch = -(-batches.per_epoch // plan.n_push)
        self.total = plan.epochs * self._per_epoch

    def steps(self, clock: int) -> int:
        """How many batches a unit has: n_push, or what is left of the epoch."""
        done = clock % self._per_epoch * self._plan.n_push
        return min(self._plan.n_push, self._batches.per_epoch - done)

    def gradient(self, clock: int, step: int, w: Array) -> Gradient:
        """Sum loss and gradient over a batch."""
        epoch, unit = divmod(clock, self._per_epoch)
        block = self._batches.get(epoch, unit * self._plan.n_push + step)
        partial = self._plan.objective.value_and_grad(w, block)
        grad = partial.grad.astype(self._plan.dtype, copy=False)
        return Gradient(grad, partial.weight, len(block.y), partial.loss)


def work(plan: Plan, partition: int, handles: Iterable[Handle]) -> Iterator[int]:
    """Run the worker of a partition, and give the number of its units."""
    acknowledge_at_once()
    with ExitStack() as stack:
        blocks: list[Block] = []
        for handle in handles:
            if handle.problem:
                raise BadData(f"the source has changed since it was ingested: {handle.problem}")
            if handle.n_rows:
                blocks += stack.enter_context(open_blocks(handle.place))
        batches = Batches(blocks, plan.batch_size, seed=plan.seed, partition=partition)
        units = BlockUnits(plan, batches)
        client = stack.enter_context(HttpClient(plan.address, plan.entries, plan.patience))
        downpour(client, partition, units, n_fetch=plan.n_fetch, rate=plan.rate)
        yield units.total


def refuse_unreachable(context: SparkContext, address: Address) -> None:
    """Raise ServerUnavailable if an executor cannot reach the server; one small job."""
    with told_plainly("asking an executor for the way to the model server"):
        (problem,) = context.parallelize([address], 1).map(unreachable).collect()
    if problem:
        raise ServerUnavailable(problem)


def run_job(
    context: SparkContext, job: Callable[[], Any], look: Callable[[], BaseException | None]
) -> None:
    """Run a job in a thread of its own while ``look`` is called again and again.

    An exception that ``look`` returns, and Ctrl-C, cancel the job: no task of it is left.
    """
    group, failed = f"sparkdist-{uuid.uuid4().hex[:12]}", list[BaseException]()

    def run() -> None:
        try:
            context.setJobGroup(group, "sparkdist: workers of the model server", True)
            with told_plainly("training"):
                job()
        except BaseException as error:
            failed.append(error)

    thread: threading.Thread = InheritableThread(target=run, daemon=True)
    thread.start()
    verdict: BaseException | None = None
    try:
        while thread.is_alive() and verdict is None:
            thread.join(_LOOK_SECONDS)
            verdict = look()
    finally:
        deadline = time.monotonic() + 30
        while thread.is_alive() and time.monotonic() < deadline:
            context.cancelJobGroup(group)
            thread.join(_LOOK_SECONDS)
    if verdict is not None:
        raise verdict
    if failed:
        raise failed[0] if isinstance(failed[0], PassFailed) else PassFailed(str(failed[0]))
