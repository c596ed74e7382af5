"""Signs, and one scale for all of them."""

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

__all__ = ["sign"]


@dataclass(frozen=True)
class sign(Codec):
    """Send the sign of each coordinate, and of each ``bucket`` of them the mean absolute value.

    ::

        C(x) = |x|_1 / n sign(x),  where sign(0) = 1
        |x - C(x)|^2 = (1 - |x|_1^2 / (n |x|_2^2)) |x|_2^2

    over the n coordinates of a bucket.  Alone it may never come near the minimum, however small
    the steps: wrap it in error_feedback.

    Source: Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression
    Schemes, ICML 2019, Algorithm 1 and Lemma 8; signs alone, Bernstein et al., signSGD, ICML 2018.
    """

    bucket: int = 1024

    contractive = True

    def __post_init__(self) -> None:
        settle(self, bucket=bucket)

    def write(self, x: Array, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Write the scales and the signs."""
        sums = np.abs(folded(x, self.bucket)).sum(axis=1, dtype=np.float64)
        scales = (sums / lengths(x.size, self.bucket)).astype(x.dtype)
        return scales.tobytes() + np.packbits(x >= 0).tobytes(), state

    def read(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Array:
        """Give each sign its scale."""
        parts = Body(body)
        scale = spread(parts.take(dtype, n_buckets(size, self.bucket)), size, self.bucket)
        bits = parts.bits()
        positive = bits.take(size)
        bits.end()
        return np.where(positive, scale, -scale)

    def longest(self, size: int, dtype: np.dtype[Any]) -> int:
        """The scales, and a bit a coordinate: always."""
        return n_buckets(size, self.bucket) * dtype.itemsize + (size + 7) // 8
