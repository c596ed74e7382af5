"""What the arguments of updaters and schedules must be: rules of :mod:`sparkdist.fields`."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, nan
from numbers import Integral, Real
from typing import Any

from sparkdist.fields import settle

__all__ = [
    "below_1",
    "count",
    "divisor",
    "factor",
    "not_negative",
    "period",
    "plain",
    "positive",
    "rate_or_schedule",
    "settle",
]


def plain(value: object) -> float:
    """Return a number as Python's float, and NaN, which no rule allows, for anything else.

    A float64 of NumPy, float though it is, would make float32 arrays float64.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        return nan
    try:
        return float(value)
    except OverflowError:  # an int above 1.8e308
        return inf


def positive(value: object) -> float:
    """Check a number above 0."""
    return _number(value, lambda x: 0 < x < inf, "must be a finite number > 0")


def not_negative(value: object) -> float:
    """Check a number of at least 0."""
    return _number(value, lambda x: 0 <= x < inf, "must be a finite number >= 0")


def below_1(value: object) -> float:
    """Check the weight of the past in a moving average."""
    return _number(value, lambda x: 0 <= x < 1, "must be a number >= 0 and < 1")


def factor(value: object) -> float:
    """Check a factor that does not let a rate grow."""
    return _number(value, lambda x: 0 < x <= 1, "must be a number > 0 and <= 1")


def divisor(value: object) -> float:
    """Check what keeps a divisor from 0, in float32 too: that holds 1.2e-38 to 3.4e38."""
    return _number(value, lambda x: 1e-37 <= x <= 1e37, "must be a number from 1e-37 to 1e37")


def count(value: object) -> int:
    """Check a number of updates."""
    return _whole(value, 0)


def period(value: object) -> int:
    """Check a number of updates that something is divided by."""
    return _whole(value, 1)


def rate_or_schedule(value: Any) -> Any:
    """Check a learning rate, or a function of t that gives one: it is asked for t = 0."""
    rule = "must be a finite number > 0, or a function of t = 0, 1, 2 ... that gives one >= 0"
    if isinstance(value, type) or not callable(value):  # a class: somebody wrote sgd(cosine)
        return _number(value, lambda x: 0 < x < inf, rule)
    try:
        first = value(0)
    except Exception as error:
        # Whatever the user's function raises is a problem of this call.
        raise ValueError(f"{rule}; for t = 0 it raises {type(error).__name__}: {error}") from error
    if not 0 <= plain(first) < inf:
        raise ValueError(f"{rule}; for t = 0 it gives {first!r}")
    return value


def _number(value: object, allows: Callable[[float], bool], rule: str) -> float:
    number = plain(value)
    if not allows(number):
        raise ValueError(f"{rule}; it is {value!r}")
    return number


def _whole(value: object, least: int) -> int:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"must be a whole number >= {least}; it is {value!r}")
    return int(value)
