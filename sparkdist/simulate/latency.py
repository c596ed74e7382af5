"""Latencies: how long a batch takes a worker, or a request the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence

from sparkdist.errors import InvalidCall
from sparkdist.fields import not_negative, number, plain, settle

__all__ = [
    "Latency",
    "Moment",
    "as_latency",
    "constant",
    "exponential",
    "lognormal",
    "pareto",
    "scaled",
    "stragglers",
    "trace",
]


class Moment(NamedTuple):
    """What a latency may depend on, beside its stream of random numbers."""

    worker: int
    #: How many this worker has drawn before.
    number: int
    #: Version of the parameters that the worker computes on: in rounds, all share it.
    round: int
    seed: int


class Latency(ABC):
    """A distribution of seconds; it holds no state, so that one serves all workers."""

    @abstractmethod
    def draw(self, stream: Generator, at: Moment) -> float:
        """Return seconds, 0 or more; ``stream`` is the worker's own."""


@dataclass(frozen=True)
class constant(Latency):
    """Always the same."""

    seconds: float

    def __post_init__(self) -> None:
        settle(self, seconds=not_negative)

    def draw(self, stream: Generator, at: Moment) -> float:
        """Return the seconds."""
        return self.seconds


@dataclass(frozen=True)
class exponential(Latency):
    """Without memory: P(T > t) = exp(-t / mean)."""

    mean: float

    def __post_init__(self) -> None:
        settle(self, mean=not_negative)

    def draw(self, stream: Generator, at: Moment) -> float:
        """Return an exponential variable."""
        return float(stream.exponential(self.mean))


@dataclass(frozen=True)
class lognormal(Latency):
    """log T is normal with mean log(median) and standard deviation sigma."""

    median: float
    sigma: float

    def __post_init__(self) -> None:
        settle(self, median=not_negative, sigma=not_negative)

    def draw(self, stream: Generator, at: Moment) -> float:
        """Return a lognormal variable."""
        return self.median * float(np.exp(self.sigma * stream.standard_normal()))


_shape = number("a finite number >= 0.001", lambda x: 1e-3 <= x < inf)
_seconds = number("a number of seconds >= 0", lambda x: x >= 0)


@dataclass(frozen=True)
class pareto(Latency):
    """With a heavy tail: P(T > t) = (least / t)^shape for t >= least, cut off at ``most``.

    Without the cut its mean, least shape / (shape - 1), is finite for shape > 1 only.
    """

    least: float
    shape: float
    most: float = inf

    def __post_init__(self) -> None:
        settle(self, least=not_negative, shape=_shape, most=_seconds)
        if not self.most >= self.least:
            problem = f"most must be at least {self.least:g}; it is {self.most!r}"
            raise InvalidCall("pareto", [problem])

    def draw(self, stream: Generator, at: Moment) -> float:
        """Return a Pareto variable; NumPy's is the one of Lomax, which begins at 0."""
        return min(self.least * (1.0 + float(stream.pareto(self.shape))), self.most)


@dataclass(frozen=True)
class stragglers(Latency):
    """Most batches take about ``median``; some, more often in some rounds than in others, do not.

    ::

        L ~ Gamma(3.232, scale 0.451)                    once for each round, shared by all workers
        with probability min(L / 100, 1)                 T = min(2 (1 + Pareto(1.2)), 310)
        else                                             T ~ LogNormal(log 1.5, 0.07)

    in seconds for a median of 1.5, and in proportion for another one.  It was fitted to two
    numbers that Chen et al. report of 100 workers: the 98th gradient of a round comes within
    2 s in 80 % of the rounds, the last one in 30 %.  Workers that are slow independently of each
    other cannot have both.  Under ``asp`` few workers share a version, and so an L.

    Source: Chen et al., Revisiting Distributed Synchronous SGD, arXiv:1604.00981, section 2.1,
    for the two numbers; the model is our own.
    """

    median: float = 1.5

    def __post_init__(self) -> None:
        settle(self, median=not_negative)

    def draw(self, stream: Generator, at: Moment) -> float:
        """Return the seconds of one worker in one round."""
        if stream.random() < _intensity(at.seed, at.round) / 100.0:
            seconds = min(2.0 * (1.0 + float(stream.pareto(1.2))), 310.0)
        else:
            seconds = 1.5 * float(np.exp(0.07 * stream.standard_normal()))
        return seconds * self.median / 1.5


@lru_cache(maxsize=4096)
def _intensity(seed: int, number: int) -> float:
    """L of a round: a function of its number, whoever asks first."""
    stream = np.random.default_rng(SeedSequence(seed, spawn_key=(number, 0)))
    return float(stream.gamma(3.232, 0.451))


def _row(values: Any) -> tuple[float, ...]:
    found = tuple(plain(value) for value in values) if isinstance(values, Iterable) else ()
    if not found or not all(0 <= value < inf for value in found):
        raise ValueError(f"must be finite numbers >= 0, at least one; it is {values!r:.80}")
    return found


def _rows(values: Any) -> tuple[tuple[float, ...], ...]:
    if not isinstance(values, Iterable) or not (rows := tuple(_row(row) for row in values)):
        raise ValueError(f"must be a list of numbers for each worker; it is {values!r:.80}")
    return rows


@dataclass(frozen=True)
class trace(Latency):
    """What was measured: draw i of worker p is ``seconds[p][i]``; both begin again at the end."""

    seconds: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        settle(self, seconds=_rows)

    def draw(self, stream: Generator, at: Moment) -> float:
        """Return the next one of this worker."""
        row = self.seconds[at.worker % len(self.seconds)]
        return row[at.number % len(row)]


@dataclass(frozen=True)
class scaled(Latency):
    """Another latency, times a factor for each worker: ``factors[p]``, from the start at the end.

    Machines of unlike speed, for instance: ``scaled(exponential(0.1), [1, 1, 1, 10])``.
    """

    latency: Latency
    factors: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "latency", as_latency(self.latency, "scaled", "latency"))
        settle(self, factors=_row)

    def draw(self, stream: Generator, at: Moment) -> float:
        """Return what the other one gives, slower or faster."""
        factor = self.factors[at.worker % len(self.factors)]
        return float(factor) * self.latency.draw(stream, at)


def as_latency(value: Any, caller: str, name: str) -> Latency:
    """Return a latency for one, or for a number of seconds.

    Raises
    ------
    InvalidCall
        For anything else.
    """
    if isinstance(value, Latency):
        return value
    if 0 <= (seconds := plain(value)) < inf:
        return constant(seconds)
    rule = "must be a number of seconds >= 0 or a latency, such as exponential(0.1)"
    raise InvalidCall(caller, [f"{name} {rule}; it is {value!r:.80}"])
