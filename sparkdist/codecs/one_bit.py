"""One bit a coordinate, and what it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparkdist.blocks import Array
from sparkdist.codecs._base import Codec, State
from sparkdist.codecs._body import Body
from sparkdist.codecs._buckets import folded, lengths, n_buckets, spread
from sparkdist.codecs._check import bucket
from sparkdist.fields import settle

__all__ = ["one_bit"]


@dataclass(frozen=True)
class one_bit(Codec):
    """Send which side of 0 each coordinate is on, and of each ``bucket`` the means of both sides.

    ::

        C(x)_i = mean of the x_j >= 0   if x_i >= 0
                 mean of the x_j <  0   otherwise

    The means make the error as small as it can be with these two sets: it adds up to 0 over
    each.  Needs error feedback.

    Source: Seide et al., 1-Bit Stochastic Gradient Descent and its Application to Data-Parallel
    Distributed Training of Speech DNNs, Interspeech 2014, section 3.1; there a bucket is a column
    of a weight matrix.
    """

    bucket: int = 1024

    contractive = True

    def __post_init__(self) -> None:
        settle(self, bucket=bucket)

    def write(self, x: Array, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Write the means of both sides, and the bits."""
        positive = x >= 0
        rows, side = folded(x, self.bucket), folded(positive, self.bucket)
        above = np.where(side, rows, 0).sum(axis=1, dtype=np.float64)
        below = np.where(side, 0, rows).sum(axis=1, dtype=np.float64)
        n_above = np.count_nonzero(side, axis=1)
        n_below = lengths(x.size, self.bucket) - n_above
        means = [above / np.maximum(n_above, 1), below / np.maximum(n_below, 1)]
        return np.array(means, x.dtype).tobytes() + np.packbits(positive).tobytes(), state

    def read(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Array:
        """Give each side its mean."""
        parts, n = Body(body), n_buckets(size, self.bucket)
        above, below = (spread(parts.take(dtype, n), size, self.bucket) for _ in range(2))
        bits = parts.bits()
        positive = bits.take(size)
        bits.end()
        return np.where(positive, above, below)

    def longest(self, size: int, dtype: np.dtype[Any]) -> int:
        """The means, and a bit a coordinate: always."""
        return 2 * n_buckets(size, self.bucket) * dtype.itemsize + (size + 7) // 8
