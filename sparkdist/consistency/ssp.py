"""Stale synchronous parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparkdist.consistency._base import Consistency
from sparkdist.errors import InvalidCall

__all__ = ["ssp"]


@dataclass(frozen=True)
class ssp(Consistency):
    """A worker may be at most ``bound`` clocks ahead of the slowest one; 0 is lockstep.

    A worker at clock c goes on iff c <= slowest + bound, so that what it reads holds every
    update of the clocks up to c - bound - 1.  Each push is applied as it comes.

    Source: Ho et al., More Effective Distributed ML via a Stale Synchronous Parallel Parameter
    Server, NIPS 2013, section 3.
    """

    bound: int
    in_rounds: ClassVar[bool] = False
    waits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if type(self.bound) is not int or self.bound < 0:
            raise InvalidCall("ssp", [f"bound must be an integer >= 0; it is {self.bound!r}"])

    def may_pull(self, clock: int, slowest: int) -> bool:
        """Whether the slowest is at most ``bound`` clocks behind."""
        return clock <= slowest + self.bound

    def quorum(self, n_active: int) -> int:
        """Return 1: each push is a round of its own."""
        return 1
