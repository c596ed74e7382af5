"""Stale synchronous parallel."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import ClassVar

from sparkdist.consistency._base import Consistency
from sparkdist.fields import number, optional, settle, whole

__all__ = ["ssp"]


@dataclass(frozen=True)
class ssp(Consistency):
    """A worker may be at most ``bound`` clocks ahead of the slowest one; 0 is lockstep.

    A worker at clock c goes on iff c <= slowest + bound, so that what it reads holds every
    update of the clocks up to c - bound - 1.  Each push is applied as it comes.

    With a ``lease``, a worker that the server has not heard of for so many seconds is not waited
    for: the slowest is one of the others, until it joins, pulls or pushes again, at the clock that
    it had come to.  What it pushes then counts as ever.  A lease must be longer than a unit of
    work takes.  Without one a lost worker is waited for until Spark has run its task again.

    Source: Ho et al., More Effective Distributed ML via a Stale Synchronous Parallel Parameter
    Server, NIPS 2013, section 2; leases, Gray and Cheriton, Leases: An Efficient Fault-Tolerant
    Mechanism for Distributed File Cache Consistency, SOSP 1989.
    """

    bound: int
    lease: float | None = None
    in_rounds: ClassVar[bool] = False
    waits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle(self, bound=whole(0), lease=optional(_seconds))

    def may_pull(self, clock: int, slowest: int) -> bool:
        """Whether the slowest is at most ``bound`` clocks behind."""
        return clock <= slowest + self.bound

    def quorum(self, n_active: int) -> int:
        """Return 1: each push is a round of its own."""
        return 1


_seconds = number("a finite number of seconds > 0, or None", lambda x: 0 < x < inf)
