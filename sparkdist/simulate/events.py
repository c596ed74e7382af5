"""Events: a clock that jumps from one to the next."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

__all__ = ["Events"]


class Events:
    """What is to happen, in order of time; of two at the same time, in the order of booking."""

    def __init__(self) -> None:
        self.now = 0.0
        self._booked = 0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []

    def at(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """Book ``action(*arguments)`` for a time, which may not be past."""
        self._booked += 1
        heapq.heappush(self._heap, (seconds, self._booked, action, arguments))

    def after(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """Book ``action(*arguments)`` so many seconds from now."""
        self.at(self.now + seconds, action, *arguments)

    @property
    def next(self) -> float | None:
        """Time of the next event; None if there is none."""
        return self._heap[0][0] if self._heap else None

    def step(self) -> None:
        """Go to the next event, and let it happen."""
        self.now, _, action, arguments = heapq.heappop(self._heap)
        action(*arguments)
