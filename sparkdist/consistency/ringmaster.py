"""Asynchronous parallel, without gradients that are too old."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparkdist.consistency._base import Consistency
from sparkdist.fields import settle, whole

__all__ = ["ringmaster"]


@dataclass(frozen=True)
class ringmaster(Consistency):
    """Nobody waits, and a push whose parameters are ``bound`` versions old, or more, is dropped.

    A dropped push is counted, its examples count as not seen, and its worker goes on at once with
    the parameters of now.  With a bound of 1 every update is one of serial descent.

    Source: Maranjyan, Tyurin and Richtarik, Ringmaster ASGD, arXiv:2501.16168, Algorithm 4, where
    bound is R.
    """

    bound: int
    in_rounds: ClassVar[bool] = False
    waits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        settle(self, bound=whole(1))

    def may_pull(self, clock: int, slowest: int) -> bool:
        """Return True."""
        return True

    def quorum(self, n_active: int) -> int:
        """Return 1: each push is a round of its own."""
        return 1

    def takes(self, delay: int) -> bool:
        """Whether the delay is below the bound."""
        return delay < self.bound
