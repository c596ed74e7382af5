"""Train: one Spark job whose tasks are the workers of a run with the model server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, TypeVar

from pyspark import SparkContext

from sparkdist.client import Address, Compressing, Entry, HttpClient, Memory
from sparkdist.codecs import Codec
from sparkdist.errors import PassFailed
from sparkdist.spark import jobs
from sparkdist.spark.data.residency import local_file
from sparkdist.spark.failures import told_plainly
from sparkdist.spark.transport import acknowledge_at_once
from sparkdist.workers import Units, Worker, downpour

__all__ = ["Loop", "Plan", "run_job", "unreachable_from", "work"]

T = TypeVar("T")


class Coding(NamedTuple):
    """How gradients are compressed on their way."""

    codec: Codec
    size: int
    dtype: str
    seed: int
    #: A memory that the server cannot work out stays on the worker's host.
    on_host: bool

    def __call__(self, client: HttpClient, address: Address, partition: int) -> Compressing:
        """Put the codec before a client."""
        path = local_file(f"sparkdist-memory-{address.run}-{partition}")
        memory = Memory(path) if self.on_host else None
        return Compressing(client, self.codec, self.size, self.dtype, self.seed, memory)


class Loop(NamedTuple):
    """How every worker of a run goes about its units."""

    worker: Worker = downpour()
    patience: float = 300.0
    state_bytes: int = 0
    coding: Coding | None = None


class Plan(NamedTuple):
    """What every worker of a run is told; it travels in the closure of the job."""

    address: Address
    entries: tuple[Entry, ...]
    make_units: Callable[[int, Any], AbstractContextManager[Units]]
    loop: Loop


def work(plan: Plan, partition: int, elements: Iterable[Any]) -> Iterator[int]:
    """Run the worker of a partition, and give how many times its codec's memory was lost."""
    acknowledge_at_once()
    worker, patience, state_bytes, coding = plan.loop
    lost = 0
    try:
        with (
            plan.make_units(partition, elements) as units,
            HttpClient(plan.address, plan.entries, patience, state_bytes) as client,
        ):
            if coding is None:
                worker(client, partition, units)
            else:
                compressing = coding(client, plan.address, partition)
                worker(compressing, partition, units)
                lost = compressing.lost
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise PassFailed(f"the worker of partition {partition} failed: {what}") from error
    yield lost


def unreachable_from(context: SparkContext, address: Address, patience: float) -> str | None:
    """Say why an executor cannot reach the server, or None; one small job.

    Raises
    ------
    WorkersMissing
        If there is no executor to be asked for ``patience`` seconds.
    """
    # Here, since requests takes 54 ms to import (python -X importtime), which no worker needs.
    from sparkdist.client.reach import unreachable

    asking = context.parallelize([address], 1).map(unreachable)
    with told_plainly("asking an executor for the way to the model server"):
        (problem,) = jobs.run_job(context, asking.collect, patience=patience)
    return problem


def run_job(
    context: SparkContext, job: Callable[[], T], look: Callable[[], BaseException | None]
) -> T:
    """Run the workers' job, as :func:`jobs.run_job` does; whatever it fails with is PassFailed."""

    def told() -> T:
        try:
            with told_plainly("training"):
                return job()
        except PassFailed:
            raise
        except Exception as error:
            raise PassFailed(str(error)) from error

    return jobs.run_job(context, told, look)
