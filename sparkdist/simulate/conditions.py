"""Conditions: what a cluster is like, beside how fast its workers compute."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from numpy.random import Generator

from sparkdist.errors import InvalidCall
from sparkdist.fields import not_negative, number, plain, settle
from sparkdist.simulate.latency import Latency, Moment, as_latency, exponential

__all__ = ["Conditions", "Deaths", "Network", "Service"]


_bandwidth = number("a number of bytes a second > 0", lambda x: x > 1e-9)


@dataclass(frozen=True)
class Network:
    """The way between a worker and the server: ``latency + bytes / bandwidth``, each way.

    Parameters
    ----------
    latency
        Seconds that the first byte takes.
    bandwidth
        Bytes a second of the worker's own link; the server's is in :class:`Service`.
    """

    latency: float = 0.0
    bandwidth: float = inf

    def __post_init__(self) -> None:
        settle(self, latency=not_negative, bandwidth=_bandwidth)

    def seconds(self, n_bytes: int) -> float:
        """How long a message of so many bytes is on its way."""
        return self.latency + n_bytes / self.bandwidth


@dataclass(frozen=True)
class Service:
    """The server: it handles one request at a time, in the order in which they come.

    Parameters
    ----------
    seconds
        That a request takes it, a number or a latency.
    bandwidth
        Bytes a second at which requests come in and answers go out, one behind the other.
    """

    seconds: float | Latency = 0.0
    bandwidth: float = inf
    _time: Latency = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_time", as_latency(self.seconds, "Service", "seconds"))
        settle(self, bandwidth=_bandwidth)

    def time(self, stream: Generator, at: Moment) -> float:
        """Return the seconds that a request takes, its bytes aside."""
        return self._time.draw(stream, at)


@dataclass(frozen=True)
class Deaths:
    """Workers die, and come back as a new copy that goes on where the server says.

    What a worker was computing is lost.  A push that it had sent arrives, and counts; its answer
    reaches nobody.

    Parameters
    ----------
    every
        Seconds from a start to the next death; a number is the mean of an exponential.
    back
        Seconds from a death to the new copy's start, a number or a latency.
    """

    every: float | Latency
    back: float | Latency = 0.0
    _every: Latency = field(init=False, repr=False, compare=False)
    _back: Latency = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.every, Latency) and not 1e-9 <= plain(self.every) < inf:
            rule = "every must be a number of seconds > 0 or a latency"
            raise InvalidCall("Deaths", [f"{rule}; it is {self.every!r}"])
        every = self.every if isinstance(self.every, Latency) else exponential(self.every)
        object.__setattr__(self, "_every", every)
        object.__setattr__(self, "_back", as_latency(self.back, "Deaths", "back"))

    def life(self, stream: Generator, at: Moment) -> float:
        """Return the seconds from a start to the death."""
        return self._every.draw(stream, at)

    def absence(self, stream: Generator, at: Moment) -> float:
        """Return the seconds from a death to the next start."""
        return self._back.draw(stream, at)


class Conditions(NamedTuple):
    """All of them."""

    latency: Latency
    network: Network
    service: Service
    deaths: Deaths | None
