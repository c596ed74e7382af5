"""What worker loops ask of a client."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from sparkdist.blocks import Array

__all__ = ["Address", "Answer", "Gradient", "ParameterClient"]


@dataclass(frozen=True)
class Address:
    """Where the server is, and what it wants to hear; travels in Spark's closures only."""

    host: str
    port: int
    #: Not in the repr: it is not to turn up in a log.
    token: str = field(repr=False)
    run: str
    #: PEM of the certificate that the server must show; None for plain HTTP.
    certificate: str | None = field(default=None, repr=False)


class Gradient(NamedTuple):
    """What a unit of work gives: sums over its rows, never means.

    ``value`` is a flat vector of the model's type; or, for the user's own descent, a dict of
    arrays, or None where there is nothing to apply.  ``state`` is what the worker has to know to
    go on after this unit, a vector of float64: the server keeps the last one that it applied, and
    :meth:`ParameterClient.join` gives it to whoever goes on for this partition.
    """

    value: Any
    weight: float = 1.0
    examples: int = 0
    loss: float | None = None
    state: Array | None = None


class Answer(NamedTuple):
    """What a worker is told; it goes on at clock ``next``, with ``w`` if that came along.

    ``status`` is one of the server's: ok, duplicate, dropped, skipped, ahead, stale.
    """

    status: str
    next: int
    version: int
    generation: str
    w: Array | None = None
    #: In the answer to ``join`` alone, and there for workers that have one.
    state: Array | None = None


class ParameterClient(Protocol):
    """The four things that a worker says; each may be said again without harm."""

    def join(self, partition: int) -> Answer:
        """Ask at which clock this partition goes on."""

    def pull(self, partition: int) -> Answer:
        """Get the parameters, as soon as this worker may have them."""

    def push(
        self, partition: int, clock: int, at: Answer, gradient: Gradient, *, want: bool
    ) -> Answer:
        """Hand in the gradient that was computed on the parameters of ``at``."""

    def leave(self, partition: int) -> Answer:
        """Say that nobody needs to wait for this partition any more."""
