"""Leases: when each worker was last heard of, and for how long that counts."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from math import inf

__all__ = ["Leases"]


class Leases:
    """For each worker the time of its last word, and, with a lease, who has been silent too long.

    Every call takes constant time: a lease that is renewed ends after all others.

    Parameters
    ----------
    seconds
        Of a lease; None for leases that do not end.
    clock
        Gives seconds, which never go back.
    """

    def __init__(self, seconds: float | None = None, clock: Callable[[], float] = time.monotonic):
        self.seconds, self._clock = seconds, clock
        self._heard: dict[int, float] = {}
        #: Those whose lease runs; the one that ends first comes first.
        self._running: OrderedDict[int, None] = OrderedDict()

    def begin(self, n_workers: int) -> None:
        """Give every worker a lease from now on."""
        self._heard.clear()
        self._running.clear()
        for partition in range(n_workers):
            self.renew(partition)

    def use(self, clock: Callable[[], float]) -> None:
        """Count on another clock; all leases begin anew."""
        self._clock = clock
        self.begin(len(self._heard))

    def renew(self, partition: int) -> None:
        """Book that a worker was heard of: its lease begins anew."""
        self._heard[partition] = self._clock()
        if self.seconds is not None:
            self._running[partition] = None
            self._running.move_to_end(partition)

    def hold(self, partition: int) -> None:
        """Let a lease not run: the worker waits for an answer, or has left."""
        self._running.pop(partition, None)

    @property
    def end(self) -> float:
        """When the first lease will be over that runs; infinity if none does."""
        for partition in self._running:
            return self._heard[partition] + (self.seconds or 0.0)
        return inf

    @property
    def left(self) -> float:
        """Seconds in which no lease can end, also none that begins after this moment."""
        if self.seconds is None:
            return inf
        return min(self.end - self._clock(), self.seconds)

    def over(self) -> Iterator[int]:
        """Give the workers whose lease has ended; each is given once."""
        while self._running and self._clock() >= self.end:
            yield self._running.popitem(last=False)[0]

    def silent(self) -> dict[int, float]:
        """Seconds since each worker was heard of."""
        now = self._clock()
        return {partition: now - heard for partition, heard in self._heard.items()}
