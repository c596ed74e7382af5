"""Buckets: neighbouring coordinates that share a scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkdist.blocks import Array

__all__ = ["folded", "lengths", "n_buckets", "spread"]


def n_buckets(size: int, bucket: int) -> int:
    """How many buckets there are; the last one may be shorter."""
    return -(-size // bucket)


def folded(x: NDArray[Any], bucket: int) -> NDArray[Any]:
    """Show a vector as one row a bucket; a copy with zeros at the end, if one is shorter."""
    width, rows = min(bucket, x.size), n_buckets(x.size, bucket)
    if x.size == rows * width:
        return x.reshape(rows, width)
    padded = np.zeros(rows * width, x.dtype)
    padded[: x.size] = x
    return padded.reshape(rows, width)


def lengths(size: int, bucket: int) -> Array:
    """How many coordinates each bucket has, as floats."""
    found = np.full(n_buckets(size, bucket), float(bucket))
    found[-1] = size - bucket * (found.size - 1)
    return found


def spread(scales: Array, size: int, bucket: int) -> Array:
    """Give each coordinate the scale of its bucket."""
    return np.repeat(scales, min(bucket, size))[:size]
