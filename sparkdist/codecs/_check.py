"""What the arguments of codecs must be: rules of :mod:`sparkdist.fields`."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from sparkdist.codecs._base import Codec
from sparkdist.fields import settle

__all__ = ["bucket", "contraction", "flag", "levels", "rank", "settle", "share"]


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
