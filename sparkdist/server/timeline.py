"""Timeline: how the sums of a run have grown, in a few hundred points however long it takes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

__all__ = ["Point", "Timeline"]

#: Seconds since the run was opened; the pushes that had been applied then, their examples, and the
#: sums of their losses and weights.
Point: TypeAlias = "tuple[float, ...]"

#: A chart is some 700 pixels wide.
LIMIT = 256
#: So many go into a checkpoint, which may be written with every push.
_SAVED = 64
#: Seconds between the points of a run that has just begun.
_FIRST_STEP = 0.05


class Timeline:
    """Points of a run, about evenly spaced in time.

    When there are ``LIMIT`` of them every second one goes, and the next ones come at the distance
    that those left have: a push costs a look at the clock, and now and then a tuple.  Since
    points are sums, only detail is lost: the mean loss between any two points that are left,
    (loss_b - loss_a) / (weight_b - weight_a), is exactly what it was.

    Parameters
    ----------
    points
        Those of the server before, which this one goes on with; the time between the two does not
        count.
    """

    def __init__(self, points: Iterable[Sequence[float]] = ()):
        self._points: list[Point] = [tuple(point) for point in points]
        so_far = self._points[-1][0] if self._points else 0.0
        self._began = time.monotonic() - so_far
        self._step = max(_FIRST_STEP, 2 * so_far / LIMIT)
        self._due = so_far + self._step if self._points else 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the run was opened."""
        return time.monotonic() - self._began

    @property
    def points(self) -> list[Point]:
        """The points so far; what came after the last one is in no point yet."""
        return list(self._points)

    @property
    def saved(self) -> list[Point]:
        """The newest point, and those before it at even distances: for a checkpoint."""
        step = max(1, -(-len(self._points) // _SAVED))
        return self._points[::-step][::-1]

    def status(self) -> dict[str, Any]:
        """Seconds since the run was opened, and the points, for JSON."""
        return {"seconds": round(self.seconds, 3), "timeline": self.points}

    def add(self, applied: int, examples: int, loss: float, weight: float) -> None:
        """Book the sums after an applied push, if it is time for a point."""
        seconds = time.monotonic() - self._began
        if seconds < self._due:
            return
        self._points.append((round(seconds, 3), applied, examples, loss, weight))
        if len(self._points) >= LIMIT:
            del self._points[::2]
            self._step = 2 * seconds / LIMIT
        self._due = seconds + self._step
