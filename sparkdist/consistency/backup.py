"""Synchronous rounds with backup workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparkdist.consistency._base import Consistency
from sparkdist.fields import settle, whole

__all__ = ["backup"]


@dataclass(frozen=True)
class backup(Consistency):
    """A round ends when all active workers but ``extra`` have pushed: N of N + b.

    The pushes of those that come later belong to a round that has closed: they are dropped and
    counted, their examples count as not seen, and the mean is over the N.  The workers that were
    dropped go on at once with the next parameters.

    Source: Chen et al., Revisiting Distributed Synchronous SGD, arXiv:1604.00981, section 3.
    """

    extra: int
    in_rounds: ClassVar[bool] = True
    waits: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle(self, extra=whole(0))

    def may_pull(self, clock: int, slowest: int) -> bool:
        """Return True: only a worker whose own push is in the open round waits."""
        return True

    def quorum(self, n_active: int) -> int:
        """Return all but ``extra``, and at least one."""
        return max(1, n_active - self.extra)
