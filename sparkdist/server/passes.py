"""Passes: the meeting point of a driver that has vectors and workers that have blocks.

One pass at a time: the driver gives its vectors, workers fetch them with their portions and
bring the sums, and the driver gets the total.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sparkdist.blocks import Array, Partial
from sparkdist.errors import DecodeError, StaleRun
from sparkdist.server.coordinator import Coordinator
from sparkdist.server.totals import Totals

__all__ = ["Passes", "Task"]

#: Seconds: a copy of portions is not worth while sooner, and not before this many usual times.
_SOONEST, _USUAL_TIMES = 0.1, 3.0
#: Seconds of work for which a worker comes back at all: a request costs some 1 ms of the CPUs
#: that the workers need (of 54 ms for 500,000 x 100 it was 9 with 0.01 and is 3 with 0.02), and a
#: slow worker holds a pass up by no more than a few times this.
_WORTH_ASKING = 0.02
#: Seconds that a worker waits for the first run to be opened.
_BEGINNING = 20.0


class Task(NamedTuple):
    """What a worker is told: ``work`` at portions, ``wait`` (ask again), or ``over``."""

    status: str
    number: int = 0
    kind: str = ""
    portions: tuple[int, ...] = ()
    #: None if the worker has seen them.
    vectors: bytes | None = None
    n_vectors: int = 0


class Passes:
    """State of the resident job of one dataset, under one lock.

    Parameters
    ----------
    idle
        Seconds without a pass after which the workers are sent home: they hold task slots.
    """

    def __init__(self, idle: float):
        self._idle = idle
        self._partitions: Sequence[int] = ()
        self._changed = threading.Condition()
        self._run, self._over, self.longest = "", True, 0
        self._number, self._kind, self._size = 0, "", 0
        self._vectors, self._n_vectors = b"", 0
        self._coordinator: Coordinator | None = None
        self._totals: Totals | None = None
        self._homes: dict[int, tuple[str, str]] = {}
        self._usual, self._rested = dict[str, float](), time.monotonic()
        self._handed: dict[int, tuple[float, int]] = {}
        self._missing: set[int] = set()
        self._workers: set[str] = set()
        self.counts = {"results": 0, "duplicates": 0, "passes": 0}
        self.fault: str | None = None

    # --- the driver's side ------------------------------------------------------------------

    @property
    def n_portions(self) -> int:
        """How many portions a pass has."""
        return len(self._partitions)

    def begin(self, run: str, size: int, partitions: Sequence[int]) -> None:
        """Open a run for the workers of a new job; those of another one are sent home.

        Its vectors and sums have at most ``size`` elements; ``partitions`` has the partition of
        each portion, in the order in which their results are added up.
        """
        with self._changed:
            self._partitions = partitions
            self._run, self._over, self._rested = run, False, time.monotonic()
            # A worker brings at most everything, each portion with its loss and its weight.
            self.longest = 8 * self.n_portions * (size + 2)
            self._homes, self._missing, self._coordinator = {}, set(), None
            self._workers, self.fault = set(), None
            self._changed.notify_all()

    def evaluate(
        self, number: int, kind: str, vectors: Sequence[Array], seconds: float, width: int = 0
    ) -> tuple[str, Partial | None]:
        """Begin a pass, and wait for it for a while: see :meth:`wait_for`.

        A sum has ``width`` numbers; as many as a vector, where that is 0.
        """
        with self._changed:
            if not self._over:
                self._number, self._kind = number, kind
                self._vectors = b"".join(vector.tobytes() for vector in vectors)
                self._n_vectors, self._size = len(vectors), width or vectors[0].size
                usual = self._usual.get(kind, 0.0)
                late = _USUAL_TIMES * usual or _SOONEST
                least = int(_WORTH_ASKING / usual) if usual else 1
                self._coordinator = Coordinator(
                    self._partitions, self._homes, late, _SOONEST, max(1, least)
                )
                self._totals = Totals(self._partitions)
                self._handed = {}
                self._changed.notify_all()
        return self.wait_for(number, seconds)

    def wait_for(self, number: int, seconds: float) -> tuple[str, Partial | None]:
        """Return ``done`` and the sums; or ``busy``; or what hinders: ``missing``, ``over``.

        ``unknown`` means that the pass has to be begun again: the server is another one.
        """
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                if self._number != number or self._coordinator is None:
                    return ("over" if self._over else "unknown"), None
                if self._coordinator.done:
                    assert self._totals is not None
                    return "done", self._totals.total()
                if self._over or self._missing:
                    return ("over" if self._over else "missing"), None
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    return "busy", None

    def end(self) -> None:
        """Send the workers home."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def status(self) -> dict[str, object]:
        """Everything that can be counted."""
        with self._changed:
            return {
                "run": self._run,
                "pass": self._number,
                "over": self._over,
                "portions": len(self._partitions),
                "workers": len(self._workers),
                **self.counts,
            }

    # --- the workers' side ------------------------------------------------------------------

    def work(
        self, run: str, worker: str, own: Sequence[int], place: str, seen: int, seconds: float
    ) -> Task:
        """Give a worker portions of the pass; waits until there are some, for a while."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while True:
                self._await_run(run, deadline)
                now = time.monotonic()
                if not self._run:
                    return Task("wait")
                if self._over or self._has_rested(now):
                    return Task("over")
                self._workers.add(worker)
                numbers = self._hand_out(worker, own, place, now)
                if numbers:
                    task = Task("work", self._number, self._kind, tuple(numbers))
                    if seen == self._number:
                        return task
                    return task._replace(vectors=self._vectors, n_vectors=self._n_vectors)
                if now >= deadline:
                    return Task("wait")
                self._changed.wait(self._until(deadline, now) - now)

    def bring(
        self, run: str, number: int, portions: Sequence[int], totals: Array, grads: Array
    ) -> None:
        """Book results: a row a portion, of loss and weight in ``totals``, of d in ``grads``.

        A result that comes a second time, or of a pass that is over, changes nothing.

        Raises
        ------
        DecodeError
            If the sums do not fit the pass.
        """
        with self._changed:
            self._refuse_stale(run)
            coordinator = self._coordinator if number == self._number else None
            if coordinator is None or coordinator.done or self._totals is None:
                self.counts["duplicates"] += len(portions)
                return
            expected = (len(portions), 2), (len(portions), self._size)
            if (totals.shape, grads.shape) != expected:
                found = f"{totals.shape} and {grads.shape}"
                raise DecodeError(f"the sums have shapes {found}; the pass needs {expected}")
            self._learn(portions)
            for portion, (loss, weight), grad in zip(portions, totals, grads, strict=True):
                fresh = coordinator.accept(portion)
                self.counts["results" if fresh else "duplicates"] += 1
                if fresh:
                    grad = grad.astype(np.float64, copy=False)
                    self._totals.add(portion, Partial(float(loss), grad, float(weight)))
            if coordinator.done:
                self.counts["passes"] += 1
                self._rested = time.monotonic()
                self._changed.notify_all()

    def miss(self, run: str, partitions: Sequence[int]) -> None:
        """Hear that a worker's blocks are not where it is."""
        with self._changed:
            self._await_run(run, time.monotonic() + _BEGINNING)
            self._refuse_stale(run)
            self._missing.update(partitions)
            self._changed.notify_all()

    # --- under the lock ---------------------------------------------------------------------

    def _await_run(self, run: str, deadline: float) -> None:
        """Wait for the first run: Spark may have its workers up before the driver opens it."""
        while not self._run and (left := deadline - time.monotonic()) > 0:
            self._changed.wait(left)
        if self._run:
            self._refuse_stale(run)

    def _refuse_stale(self, run: str) -> None:
        if run != self._run:
            raise StaleRun(f"run {run!r:.80} is over, or is not this server's")

    def _has_rested(self, now: float) -> bool:
        """Send everybody home if there was no pass for long."""
        busy = self._coordinator is not None and not self._coordinator.done
        if not busy and now - self._rested > self._idle:
            self._over = True
            self._changed.notify_all()
        return self._over

    def _hand_out(self, worker: str, own: Sequence[int], place: str, now: float) -> list[int]:
        if self._coordinator is None or self._coordinator.done:
            return []
        numbers = self._coordinator.hand_out(worker, own, place, now)
        for number in numbers:
            self._handed.setdefault(number, (now, len(numbers)))
        return numbers

    def _until(self, deadline: float, now: float) -> float:
        """When there may be something new without anybody saying so."""
        times = [deadline, self._rested + self._idle + 0.01]
        if self._coordinator is not None and not self._coordinator.done:
            times = [deadline, self._coordinator.next_late(now) + 0.001]
        return max(min(times), now + 0.001)

    def _learn(self, portions: Sequence[int]) -> None:
        """Remember how long a portion of such a pass usually takes."""
        handed = [self._handed[number] for number in portions if number in self._handed]
        if handed:
            since, count = handed[0]
            seconds = (time.monotonic() - since) / count
            usual = self._usual.get(self._kind, seconds)
            self._usual[self._kind] = 0.8 * usual + 0.2 * seconds
