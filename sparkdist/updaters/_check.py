"""What the arguments of updaters and schedules must be, beside :mod:`sparkdist.fields`."""

from __future__ import annotations

from math import inf
from typing import Any

from sparkdist.fields import number, plain

__all__ = ["divisor", "rate_or_schedule"]

#: What keeps a divisor from 0, in float32 too: that holds 1.2e-38 to 3.4e38.
divisor = number("a number from 1e-37 to 1e37", lambda x: 1e-37 <= x <= 1e37)


def rate_or_schedule(value: Any) -> Any:
    """Check a learning rate, or a function of t that gives one: it is asked for t = 0."""
    what = "a finite number > 0, or a function of t = 0, 1, 2 ... that gives one >= 0"
    if isinstance(value, type) or not callable(value):  # a class: somebody wrote sgd(cosine)
        return number(what, lambda x: 0 < x < inf)(value)
    try:
        first = value(0)
    except Exception as error:
        # Whatever the user's function raises is a problem of this call.
        raised = f"{type(error).__name__}: {error}"
        raise ValueError(f"must be {what}; for t = 0 it raises {raised}") from error
    if not 0 <= plain(first) < inf:
        raise ValueError(f"must be {what}; for t = 0 it gives {first!r}")
    return value
