"""What the arguments of codecs must be."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from sparkdist.codecs._base import Codec
from sparkdist.errors import InvalidCall

__all__ = ["bucket", "contraction", "flag", "levels", "rank", "settle", "share"]


def settle(member: Any, **rules: Callable[[Any], Any]) -> None:
    """Put plain values into the fields of a frozen dataclass; tell all that is wrong at once."""
    problems = []
    for name, rule in rules.items():
        try:
            object.__setattr__(member, name, rule(getattr(member, name)))
        except ValueError as error:
            problems.append(f"{name} {error}")
    if problems:
        raise InvalidCall(type(member).__name__, problems)


def share(value: Any) -> float:
    """Check a share of the coordinates."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if not (is_number and 0 < value <= 1):
        raise ValueError(f"must be a number > 0 and <= 1; it is {value!r}")
    return float(value)


def levels(value: object) -> int:
    """Check a number of levels."""
    return _whole(value, 1 << 16)


def bucket(value: object) -> int:
    """Check a number of coordinates."""
    return _whole(value, 1 << 53)


def rank(value: object) -> int:
    """Check the rank of a matrix."""
    return _whole(value, 1 << 16)


def flag(value: object) -> bool:
    """Check True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"must be True or False; it is {value!r}")
    return value


def contraction(value: object) -> Codec:
    """Check a codec that error feedback may wrap."""
    if not isinstance(value, Codec) or not value.contractive:
        raise ValueError(
            "must be a codec whose error is never larger than the vector, such as top_k(),"
            f" sign() or random_k(scaled=False); it is {value!r}"
        )
    return value


def _whole(value: Any, most: int) -> int:
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not (is_whole and 1 <= value <= most):
        raise ValueError(f"must be a whole number from 1 to {most}; it is {value!r}")
    return int(value)
