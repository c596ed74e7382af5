"""What the server's store asks of a consistency policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

__all__ = ["Consistency"]


class Consistency(ABC):
    """Rules about workers that run side by side; they hold no state and read no clock but these.

    A worker's clock counts the pushes that the server has accepted from it.  Workers are
    active from the start of a run until they leave; ``slowest`` is the smallest clock of those.
    """

    #: Pushes are kept until their round is full, and then summed and applied as one.
    in_rounds: ClassVar[bool] = False
    #: A worker may have to wait for another one, so that all must run at the same time.
    waits: ClassVar[bool] = False

    @abstractmethod
    def may_pull(self, clock: int, slowest: int) -> bool:
        """Whether a worker at ``clock`` may have the parameters now."""

    @abstractmethod
    def quorum(self, n_active: int) -> int:
        """How many pushes make a round, of ``n_active`` workers; at least 1."""
