"""What the server's store asks of a consistency policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

__all__ = ["Consistency"]


class Consistency(ABC):
    """Rules about workers that run side by side; they hold no state and read no clock but these.

    A worker's clock counts the pushes that the server has accepted from it.  Workers are
    active from the start of a run until they leave; ``slowest`` is the smallest clock of those,
    without the ones whose lease is over.

    A member refuses its arguments when it is made, with an InvalidCall.
    """

    #: Pushes are kept until their round is full, and then summed and applied as one.
    in_rounds: ClassVar[bool] = False
    #: A worker may have several pushes in a round.
    several: ClassVar[bool] = False
    #: A worker may have to wait for another one, so that all must run at the same time.
    waits: ClassVar[bool] = False
    #: A unit is always computed on the same parameters: other bytes under its name are a fault.
    repeats: ClassVar[bool] = False

    #: Seconds without a word after which a worker is not waited for, until its next one; None
    #: for ever.
    lease: float | None = None

    @abstractmethod
    def may_pull(self, clock: int, slowest: int) -> bool:
        """Whether a worker at ``clock`` may have the parameters now."""

    def takes(self, delay: int) -> bool:
        """Whether a push counts whose parameters are ``delay`` versions old; else it is dropped.

        A push of a round that has closed does not.
        """
        return not self.in_rounds or delay == 0

    def alone(self, version: int) -> bool:
        """Whether only one worker may have the parameters of this version."""
        return False

    @abstractmethod
    def quorum(self, n_active: int) -> int:
        """How many pushes make a round, of ``n_active`` workers; at least 1."""
