"""Crew: the workers of a dataset that stay, their Spark job and their server."""

from __future__ import annotations

import functools
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from pyspark import InheritableThread

from sparkdist.blocks import Array
from sparkdist.client import Address
from sparkdist.errors import PassFailed, WorkersMissing
from sparkdist.fields import plain
from sparkdist.objectives import Objective
from sparkdist.server.supervisor import Supervisor
from sparkdist.spark.data.dataset import Dataset
from sparkdist.spark.data.ingest import PORTION
from sparkdist.spark.engines.resident_task import Part, TaskSetup, work_at
from sparkdist.spark.engines.seat import Seat
from sparkdist.spark.failures import told_plainly
from sparkdist.spark.network import ANY_PORT, task_slots

__all__ = ["Crew", "Options"]

#: Seconds without an answer after which a worker gives up: longer than it may wait for work.
_SILENCE = 60.0
#: Seconds between two looks at the job while a pass is being waited for.
_LOOK = 0.5
#: Of all portions' metrics, which the server takes at 1 GB/s: a Spark job costs no more then.
_MOST_BYTES = 256 << 20


class Options(NamedTuple):
    """How long workers wait for passes, a pass for workers; what messages hold; the ports."""

    idle: float
    patience: float
    messages: str = "<f8"
    ports: tuple[int, int] = ANY_PORT

    def problems(self) -> list[str]:
        """Say what is wrong with the seconds."""
        given = {"idle": self.idle, "patience": self.patience}
        return [
            f"{name} must be a number of seconds >= 0; it is {value!r}"
            for name, value in given.items()
            if not plain(value) >= 0
        ]


class Crew:
    """The workers of one dataset, their job and their server, while there are any."""

    def __init__(self, dataset: Dataset):
        self._dataset = dataset
        #: One pass at a time, whatever threads the dataset is used from.
        self.turn = threading.RLock()
        self._parts = tuple(
            Part(place, start, min(start + PORTION, n_blocks))
            for _, (place, n_blocks) in sorted(dataset.blocks.items())
            for start in range(0, n_blocks, PORTION)
        )
        self._seat: Seat | None = None
        self._job: _Job | None = None
        self._options, self._pickled = Options(0.0, 0.0), b""
        self._number = 0

    def evaluate(
        self,
        options: Options,
        objective: Objective,
        pickled: bytes,
        kind: str,
        vectors: tuple[Array, ...],
        width: int,
    ) -> Any:
        """One pass, whose sums have ``width`` numbers; None if blocks are not at the workers."""
        self._dataset.handles  # noqa: B018  # may it still be used?
        if options != self._options:
            self.release()
            self._options = options
        self._number += 1
        number, began = self._number, time.monotonic()
        state = "unknown" if self._works_at(pickled) else "over"
        vectors = tuple(np.ascontiguousarray(v, dtype=options.messages) for v in vectors)
        while True:
            if state == "over":
                self._hire(objective, pickled)
                state = "unknown"
            if state == "unknown":
                state, total = self._server.ask("evaluate", number, kind, vectors, _LOOK, width)
            else:
                state, total = self._server.ask("wait_for", number, _LOOK)
            if state == "done":
                return total
            if state == "missing":
                return None
            self._look(began)
            if self._job is not None and not self._job.is_running():
                state = "over"

    def jobs(self) -> Iterable[int]:
        """Numbers of the workers' Spark jobs."""
        return () if self._job is None else self._job.numbers()

    def make_room(self) -> None:
        """Send the workers home, if there are any; a server without workers holds no slots."""
        if self._job is not None:
            self.release()

    def release(self, *, cancel: bool = False) -> None:
        """Send the workers home and stop their server."""
        with self.turn:
            job, self._job = self._job, None
            try:
                if not cancel and self._seat is not None and self._server.died is None:
                    self._server.ask("end")
                if job is not None:
                    job.end(cancel)
            finally:
                self._close()

    def _close(self) -> None:
        """Stop the server."""
        seat, self._seat = self._seat, None
        if seat is not None:
            seat.close()

    @property
    def _server(self) -> Supervisor:
        assert self._seat is not None
        return self._seat.server

    def _works_at(self, pickled: bytes) -> bool:
        """Whether there are workers for this objective, or were a moment ago."""
        job = self._job
        return job is not None and job.is_running() and pickled == self._pickled

    def _hire(self, objective: Objective, pickled: bytes) -> None:
        """See that workers for this objective are there, or on their way.

        Objectives that pickle alike are one: a parameter that ``==`` overlooks, or a global of
        the user's function, would otherwise stay as the workers know it.
        """
        if self._seat is None:
            context, (idle, _, messages, ports) = self._dataset.context, self._options
            self._seat = Seat(context, idle, messages, ports)
        if self._job is not None:
            self._server.ask("end")
            self._job.end(False)
        run = secrets.token_hex(8)
        n = self._dataset.n_features
        size = objective.size(n) + objective.n_intercepts
        widest = max(size, *(self.width_of_metric(objective, rows) for rows in (n, n + 1)))
        partitions = tuple(part.place.partition for part in self._parts)
        address = Address(*self._seat.where, self._seat.token, run)
        handles, slots = self._dataset.handles, task_slots(self._dataset.context)
        if handles.getNumPartitions() > slots:
            handles = handles.coalesce(slots)
        silence = max(self._options.patience, _SILENCE)
        task = TaskSetup(address, objective, size, self._parts, silence, self._options.messages)
        work = functools.partial(work_at, task)
        if self._seat.ready:  # it may know another run, and would refuse workers of a new one
            self._server.begin_passes(run, widest, partitions)
            self._job = _Job(self._dataset.context, handles.mapPartitions(work), self._close)
        else:  # it starts while Spark does
            self._job = _Job(self._dataset.context, handles.mapPartitions(work), self._close)
            self._server.begin_passes(run, widest, partitions)
        self._pickled = pickled

    def width_of_metric(self, objective: Objective, rows: int) -> int:
        """Numbers in a portion's metric; 0 where there is none, or too much to send."""
        fits = 8 * rows**2 * len(self._parts) <= _MOST_BYTES
        return rows**2 if fits and objective.has_metric else 0

    def take(self, seat: Seat, options: Options) -> None:
        """Use a server that has been started with these options already."""
        with self.turn:
            self.release()
            self._seat, self._options = seat, options

    def _look(self, began: float) -> None:
        """Raise what hinders the pass for good."""
        job, server = self._job, self._server
        if server.died is not None:
            raise server.died
        if job is not None and job.failed is not None:
            fault = server.ask("fault")
            raise PassFailed(f"{job.failed}\n{fault}") if fault else job.failed
        patience = self._options.patience
        if job is None or time.monotonic() - began <= patience:
            return
        # Spark may note a task that has started 10 s later; the server has heard of its worker.
        if (n := min(job.waiting(), job.n_tasks - server.ask("status")["workers"])) > 0:
            raise WorkersMissing(
                f"no task slot was free within {patience:g} s for {n} of the resident engine's"
                " workers; engine='aggregate' waits for its turn at each pass"
            )


class _Job:
    """The Spark job of the workers, in a thread of its own."""

    def __init__(self, context: Any, workers: Any, stopped: Callable[[], None]):
        self.n_tasks: int = workers.getNumPartitions()
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
            if context._jsc is None or context._jsc.sc().isStopped():
                stopped()  # nobody else would: a dataset is of no use without its session

        self._thread: threading.Thread = InheritableThread(target=run, daemon=True)
        self._thread.start()

    def is_running(self) -> bool:
        """Whether there are workers, or will be."""
        return self._thread.is_alive()

    def numbers(self) -> Iterable[int]:
        """Return Spark's numbers of it."""
        return self._context.statusTracker().getJobIdsForGroup(self._group)

    def waiting(self) -> int:
        """How many of its tasks have no slot."""
        tracker = self._context.statusTracker()
        jobs = [tracker.getJobInfo(job) for job in self.numbers()]
        stages = [tracker.getStageInfo(stage) for job in jobs if job for stage in job.stageIds]
        return sum(s.numTasks - s.numActiveTasks - s.numCompletedTasks for s in stages if s)

    def end(self, cancel: bool) -> None:
        """Wait until the workers have gone; with ``cancel``, and when they do not, make them."""
        patient = time.monotonic() + (0.0 if cancel else 5.0)
        deadline = time.monotonic() + 30.0
        while self._thread.is_alive() and time.monotonic() < deadline:
            if time.monotonic() >= patient:
                self._context.cancelJobGroup(self._group)
            self._thread.join(0.1)
