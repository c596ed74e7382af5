"""Record: what a store did, and in which order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

__all__ = ["Event", "Recorder", "durations"]


class Event(NamedTuple):
    """One thing that the store did for a worker.

    ``verb`` is join, fetch, push or leave.  ``clock`` is that of a push, and otherwise the next
    one that the store expects.  ``version`` is the one that was fetched, or on which the
    gradient of a push was computed.
    """

    seconds: float
    verb: str
    partition: int
    clock: int
    version: int


class Recorder:
    """Keeps the events of a store: ``store.observe = Recorder()``.

    A push is an event when it is booked, and a fetch when the parameters are handed out.  That,
    the data and the options of the run are all that its result depends on.

    Parameters
    ----------
    limit
        How many are kept, some 200 bytes each; what comes later is only counted.
    clock
        Gives seconds; they count from the recorder's beginning.
    """

    def __init__(self, limit: int = 1_000_000, clock: Callable[[], float] = time.monotonic):
        self.events: list[Event] = []
        #: How many came after the limit.
        self.missed = 0
        self._limit, self._clock, self._began = limit, clock, clock()

    def __call__(self, verb: str, partition: int, clock: int, version: int) -> None:
        """Be told of an event, under the store's lock."""
        if len(self.events) >= self._limit:
            self.missed += 1
            return
        seconds = self._clock() - self._began
        self.events.append(Event(seconds, verb, partition, clock, version))


def durations(events: Iterable[Event]) -> list[list[float]]:
    """Return, for each worker, the seconds from each fetch to the push after it.

    That is what a batch took, the network and the server included: ``trace(durations(events))``
    is the latency of the recorded cluster where each unit has one batch and one fetch.
    """
    fetched: dict[int, float] = {}
    found: dict[int, list[float]] = {}
    for seconds, verb, partition, _, _ in events:
        if verb == "fetch":
            fetched[partition] = seconds
        elif verb == "push" and partition in fetched:
            found.setdefault(partition, []).append(seconds - fetched.pop(partition))
    return [found.get(partition, [0.0]) for partition in range(max(found, default=-1) + 1)]
