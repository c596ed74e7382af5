"""The resident engine: one long Spark job whose workers keep their blocks open.

A pass is then a message to each worker and one back, where a Spark job costs 75 ms and more.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import secrets
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
from pyspark import InheritableThread, SparkContext
from pyspark.cloudpickle import dumps

from sparkdist.blocks import Array, Block, Partial
from sparkdist.client import Address, PassClient
from sparkdist.errors import BadData, InvalidCall, PassFailed, WorkersMissing
from sparkdist.objectives import Objective
from sparkdist.server.pass_setup import PassSetup
from sparkdist.server.supervisor import Supervisor, reserve_port
from sparkdist.spark.aggregate import AggregateEngine
from sparkdist.spark.dataset import Dataset
from sparkdist.spark.failures import told_plainly
from sparkdist.spark.ingest import PORTION, Handle
from sparkdist.spark.network import bind_host, driver_host, encryption_of, hosts_of, task_slots
from sparkdist.spark.residency import BlocksGone, Place, open_blocks
from sparkdist.spark.transport import acknowledge_at_once
from sparkdist.workers import resident

__all__ = ["ResidentEngine", "what_speaks_against"]

logger = logging.getLogger(__name__)

#: Seconds between two looks at the job while a pass is being waited for.
_LOOK = 0.5
#: Starts of the server after a death, for as long as the workers stay.
_RESTARTS = 10


class ResidentEngine:
    """Sums over all blocks of a dataset, by workers that stay between passes.

    The result is the same bit for bit whatever the schedule, and that of the aggregate engine with
    ``deterministic=True``.  Spark may run a worker's task again, or twice: a portion counts once.
    The workers hold task slots until they have had nothing to do for ``idle`` seconds, until the
    dataset is used by another job, or until it is unpersisted.

    Parameters
    ----------
    dataset
        The blocks.
    deterministic
        There for symmetry: this engine always is.
    idle
        Seconds without a pass after which the workers go home.
    patience
        Seconds in which the first worker must come.

    Raises
    ------
    WorkersMissing
        From a pass: no task slot was free in time.
    PassFailed, ServerDied
        From a pass.

    Source: Dean et al., Large Scale Distributed Deep Networks, NIPS 2012, section 4.2.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        deterministic: bool = True,
        idle: float = 5.0,
        patience: float = 120.0,
    ):
        self.dataset = dataset
        if not isinstance(dataset.crew, _Crew):
            dataset.crew = _Crew(dataset, idle, patience)
        self._crew: _Crew = dataset.crew

    def value_and_grad(self, objective: Objective, w: Array) -> Partial:
        """Sum loss, gradient and weight over the dataset: one pass."""
        return self._pass(objective, "value_and_grad", w)

    def hessp(self, objective: Objective, w: Array, v: Array) -> Partial:
        """Sum Hessian times v, as the ``grad`` of the result, and weight: one pass."""
        return self._pass(objective, "hessp", w, v)

    def _pass(self, objective: Objective, kind: str, *vectors: Array) -> Partial:
        try:
            found = self._crew.evaluate(objective, kind, vectors)
        except BaseException:
            self._crew.release(cancel=True)
            raise
        if found is not None:
            return found
        # Spark runs the tasks elsewhere than where the blocks are: they are ingested there.
        logger.warning("blocks are not where the workers are: this pass is a Spark job of its own")
        self._crew.release()
        return getattr(AggregateEngine(self.dataset, deterministic=True), kind)(objective, *vectors)


def what_speaks_against(context: SparkContext) -> str | None:
    """Say why workers that stay are not wise here, or None."""
    conf = context.getConf()
    if found := encryption_of(conf, driver_host(context)):
        return f"{found[0]} is set, which does not cover the workers' port"
    if str(conf.get("spark.dynamicAllocation.enabled", "false")).lower() in ("true", "1"):
        return "executors come and go under dynamic allocation, and workers would hold them"
    if context.statusTracker().getActiveJobsIds():
        return "other jobs are running, for whose task slots the workers would wait"
    return None


class _Part(NamedTuple):
    """Consecutive blocks of a partition."""

    place: Place
    start: int
    stop: int


class _Crew:
    """The workers of one dataset, their job and their server, while there are any."""

    def __init__(self, dataset: Dataset, idle: float, patience: float):
        self._dataset, self._idle, self._patience = dataset, idle, patience
        self._parts = tuple(
            _Part(place, start, min(start + PORTION, n_blocks))
            for _, (place, n_blocks) in sorted(dataset.blocks.items())
            for start in range(0, n_blocks, PORTION)
        )
        self._stack: ExitStack | None = None
        self._job: _Job | None = None
        self._objective: Objective | None = None
        self._number = 0

    def evaluate(self, objective: Objective, kind: str, vectors: tuple[Array, ...]) -> Any:
        """One pass; None if blocks are not where the workers are."""
        self._dataset.handles  # noqa: B018  # may it still be used?
        self._number += 1
        number, began, state = self._number, time.monotonic(), "over"
        vectors = tuple(np.ascontiguousarray(vector, dtype=np.float64) for vector in vectors)
        while True:
            if state == "over":
                self._hire(objective)
            if state in ("over", "unknown"):
                state, total = self._server.ask("evaluate", number, kind, vectors, _LOOK)
            else:
                state, total = self._server.ask("wait_for", number, _LOOK)
            if state == "done":
                return total
            if state == "missing":
                return None
            self._look(began)
            if self._job is not None and not self._job.is_running():
                state = "over"

    def release(self, *, cancel: bool = False) -> None:
        """Send the workers home and stop their server."""
        if self._stack is None:
            return
        stack, self._stack = self._stack, None
        job, self._job = self._job, None
        try:
            if not cancel and self._server.died is None:
                self._server.ask("end")
            if job is not None:
                job.end(cancel)
        finally:
            stack.close()

    def _hire(self, objective: Objective) -> None:
        """See that workers for this objective are there, or on their way."""
        job = self._job
        if job is not None and job.is_running() and _same(objective, self._objective):
            if not self._server.ask("status")["over"]:
                return
        if self._stack is None:
            self._open()
        if job is not None:
            self._server.ask("end")
            job.end(False)
        run = secrets.token_hex(8)
        n, size = self._dataset.n_features, objective.n_intercepts
        size += objective.size(n)
        self._server.begin_passes(run, size)
        address = Address(*self._where, self._token, run)
        handles, slots = self._dataset.handles, task_slots(self._dataset.context)
        if handles.getNumPartitions() > slots:
            handles = handles.coalesce(slots)
        work = functools.partial(_work, address, objective, size, self._parts, self._patience)
        self._job = _Job(self._dataset.context, handles.mapPartitions(work))
        self._objective = objective

    def _open(self) -> None:
        """Start the server."""
        context = self._dataset.context
        host = driver_host(context)
        if found := encryption_of(context.getConf(), host):
            problem = f"{', '.join(found)} is set, which its port would bypass"
            raise InvalidCall("engine='resident'", [f"{problem}; engine='aggregate' does not"])
        with ExitStack() as stack:
            held = stack.enter_context(reserve_port(bind_host(context, host)))
            bound, port = held.getsockname()[:2]
            self._where, self._token = (host, port), secrets.token_urlsafe(32)
            setup = PassSetup(
                tuple(part.place.partition for part in self._parts),
                self._idle,
                bound,
                port,
                hosts_of(host, bound, port),
                self._token,
            )
            self._server = stack.enter_context(Supervisor(setup, dumps, _RESTARTS))
            self._stack = stack.pop_all()

    def _look(self, began: float) -> None:
        """Raise what hinders the pass for good."""
        job, server = self._job, self._server
        if server.died is not None:
            raise server.died
        if job is not None and job.failed is not None:
            fault = server.ask("fault")
            raise PassFailed(f"{job.failed}\n{fault}") if fault else job.failed
        if time.monotonic() - began > self._patience and not server.ask("status")["workers"]:
            raise WorkersMissing(
                f"no task slot was free within {self._patience:g} s for the workers of the"
                " resident engine; engine='aggregate' waits for its turn at each pass"
            )


class _Job:
    """The Spark job of the workers, in a thread of its own."""

    def __init__(self, context: Any, workers: Any):
        self._context, self._group = context, f"sparkdist-{uuid.uuid4().hex[:12]}"
        self.failed: PassFailed | None = None

        def run() -> None:
            try:
                context.setJobGroup(self._group, "sparkdist: resident workers", True)
                with told_plainly("a pass"):
                    workers.collect()
            except PassFailed as error:
                self.failed = error
            except Exception as error:
                self.failed = PassFailed(f"the resident workers' job ended: {error}")

        self._thread: threading.Thread = InheritableThread(target=run, daemon=True)
        self._thread.start()

    def is_running(self) -> bool:
        """Whether there are workers, or will be."""
        return self._thread.is_alive()

    def end(self, cancel: bool) -> None:
        """Wait until the workers have gone; with ``cancel``, and when they do not, make them."""
        patient = time.monotonic() + (0.0 if cancel else 5.0)
        deadline = time.monotonic() + 30.0
        while self._thread.is_alive() and time.monotonic() < deadline:
            if time.monotonic() >= patient:
                self._context.cancelJobGroup(self._group)
            self._thread.join(0.1)


class _Blocks:
    """The blocks of a worker, mapped when they are first needed."""

    def __init__(self) -> None:
        self._opened: dict[int, list[Block]] = {}

    def of(self, place: Place) -> list[Block]:
        """All blocks of a partition."""
        if place.partition not in self._opened:
            with open_blocks(place) as blocks:
                # What is mapped stays so for as long as an array looks into it.
                self._opened[place.partition] = list(blocks)
        return self._opened[place.partition]


def _work(
    address: Address,
    objective: Objective,
    size: int,
    parts: tuple[_Part, ...],
    patience: float,
    handles: Iterable[Handle],
) -> Iterator[int]:
    """Be a resident worker, and give the number of portions that it worked at."""
    acknowledge_at_once()
    blocks, own = _Blocks(), list[int]()
    places = {part.place.partition: part.place for part in parts}
    gone: list[int] = []
    for handle in handles:
        if handle.problem:
            raise BadData(f"the source has changed since it was ingested: {handle.problem}")
        if handle.n_rows:
            partition = handle.place.partition
            places[partition] = handle.place  # a lost executor's blocks are somewhere else now
            own.append(partition)
            try:
                blocks.of(handle.place)
            except BlocksGone:
                gone.append(partition)

    def compute(kind: str, vectors: Array, number: int) -> Partial:
        place, start, stop = parts[number]
        some = blocks.of(places[place.partition])[start:stop]
        return functools.reduce(Partial.__add__, (_sums(objective, kind, vectors, b) for b in some))

    me, two_vectors = uuid.uuid4().hex, 16 * size
    with PassClient(address, me, own, _host_name(), two_vectors, patience) as client:
        if gone:
            client.miss(gone)
        yield resident(client, compute) if own else 0


def _sums(objective: Objective, kind: str, vectors: Array, block: Block) -> Partial:
    if kind == "value_and_grad":
        return objective.value_and_grad(vectors[0], block)
    return Partial(0.0, objective.hessp(vectors[0], vectors[1], block), float(block.weight.sum()))


def _host_name() -> str:
    """A name of this host that is an identifier."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:16]


def _same(one: Objective, other: Objective | None) -> bool:
    try:
        return other is not None and (one is other or bool(one == other))
    except ValueError:  # of arrays that are compared element by element
        return False
