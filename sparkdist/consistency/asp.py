"""Asynchronous parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparkdist.consistency._base import Consistency
from sparkdist.fields import settle, whole

__all__ = ["asp"]


@dataclass(frozen=True)
class asp(Consistency):
    """Nobody waits: each push is applied as it comes, however old its parameters are.

    Up to version ``warm_start`` one worker works alone, while the others wait: far from the
    minimum, where gradients change fast, old ones do harm.  It is the one with the smallest
    number of those that have joined; two may overlap while they are joining.

    Source: Dean et al., Large Scale Distributed Deep Networks, NIPS 2012, section 4.1
    (Downpour SGD).
    """

    warm_start: int = 0
    in_rounds: ClassVar[bool] = False
    waits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        settle(self, warm_start=whole(0))

    def may_pull(self, clock: int, slowest: int) -> bool:
        """Return True."""
        return True

    def quorum(self, n_active: int) -> int:
        """Return 1: each push is a round of its own."""
        return 1

    def alone(self, version: int) -> bool:
        """Whether the warm start goes on."""
        return version < self.warm_start
