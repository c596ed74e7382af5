"""Rounds of the fastest gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparkdist.consistency._base import Consistency
from sparkdist.fields import settle, whole

__all__ = ["rennala"]


@dataclass(frozen=True)
class rennala(Consistency):
    """A round is ``pushes`` gradients at the parameters of now, from whoever is fastest.

    A worker goes on at once, and may have several pushes in a round.  Pushes that come after
    their round has closed are dropped and counted, as under ``backup``.  With 1 push every
    update is one of serial descent; with as many as there are workers, and one from each, it is
    ``bsp``.

    Source: Tyurin and Richtarik, Optimal Time Complexities of Parallel Stochastic Optimization
    Methods Under a Fixed Computation Model, arXiv:2305.12387; Algorithm 2 of arXiv:2501.16168.
    """

    pushes: int
    in_rounds: ClassVar[bool] = True
    several: ClassVar[bool] = True
    waits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        settle(self, pushes=whole(1))

    def may_pull(self, clock: int, slowest: int) -> bool:
        """Return True."""
        return True

    def quorum(self, n_active: int) -> int:
        """Return ``pushes``, however many workers there are."""
        return self.pushes
