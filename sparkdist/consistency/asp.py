"""Asynchronous parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparkdist.consistency._base import Consistency

__all__ = ["asp"]


@dataclass(frozen=True)
class asp(Consistency):
    """Nobody waits: each push is applied as it comes, however old its parameters are.

    Source: Dean et al., Large Scale Distributed Deep Networks, NIPS 2012, section 4.1
    (Downpour SGD).
    """

    in_rounds: ClassVar[bool] = False
    waits: ClassVar[bool] = False

    def may_pull(self, clock: int, slowest: int) -> bool:
        """Return True."""
        return True

    def quorum(self, n_active: int) -> int:
        """Return 1: each push is a round of its own."""
        return 1
