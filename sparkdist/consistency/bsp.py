"""Bulk synchronous parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparkdist.consistency._base import Consistency

__all__ = ["bsp"]


@dataclass(frozen=True)
class bsp(Consistency):
    """A round ends when every active worker has pushed; its gradients are summed in worker order.

    The result depends neither on timing nor on faults: it is the same bit for bit.

    Source: Valiant, A Bridging Model for Parallel Computation, CACM 33 (1990).
    """

    in_rounds: ClassVar[bool] = True
    waits: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    def may_pull(self, clock: int, slowest: int) -> bool:
        """Whether the slowest has come as far."""
        return clock <= slowest

    def quorum(self, n_active: int) -> int:
        """Return all of them, and at least one."""
        return max(1, n_active)
