"""Few levels, rounded at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkdist.blocks import Array
from sparkdist.codecs._base import Codec, State
from sparkdist.codecs._body import Body, pack
from sparkdist.codecs._buckets import folded, n_buckets, spread
from sparkdist.codecs._check import bucket
from sparkdist.codecs._elias import omega, omega_length, read_omega
from sparkdist.errors import DecodeError
from sparkdist.fields import settle, whole

__all__ = ["qsgd"]


@dataclass(frozen=True)
class qsgd(Codec):
    """Round each coordinate at random to one of ``levels`` + 1 multiples of a norm: no bias.

    With s levels, over each ``bucket`` of n coordinates::

        r    = s |x_i| / |x|_2,  l = floor(r)
        C(x) = |x|_2 sign(x_i) (l + 1 with probability r - l, otherwise l) / s

        E C(x) = x,  E |C(x) - x|^2 <= min(n / s^2, sqrt(n) / s) |x|^2

    What is not 0 is sent, as the paper's sparse code: Elias omega codes of the distance from the
    last one and of its level, and its sign.  With n = s^2, the default, a coordinate of Gaussian
    vectors takes 2.8 bits; entropy coding would need 2.2.

    Source: Alistarh et al., QSGD: Communication-Efficient SGD via Gradient Quantization and
    Encoding, NeurIPS 2017, equation (3.1), Lemma 3.1 and Theorem 3.2; buckets, section 4.
    """

    levels: int = 32
    bucket: int = 1024

    unbiased = True

    def __post_init__(self) -> None:
        settle(self, levels=whole(1, 1 << 16), bucket=bucket)

    def write(self, x: Array, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Write the norms, how many levels are not 0, and their codes."""
        norms = _norms(folded(x, self.bucket))
        level = self._levels(x, norms, rng)
        places = np.flatnonzero(level)
        parts = [
            *omega(np.diff(places, prepend=-1)),
            *omega(level[places].astype(np.int64)),
            x[places] < 0,
        ]
        return norms.tobytes() + places.size.to_bytes(8, "little") + pack(parts), state

    def read(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Array:
        """Give the levels their norms and signs."""
        parts = Body(body)
        norms = parts.take(dtype, n_buckets(size, self.bucket))
        count = parts.count(size)
        bits = parts.bits()
        places = np.cumsum(read_omega(bits, count, size)) - 1
        level = read_omega(bits, count, self.levels).astype(dtype)
        negative = bits.take(count)
        bits.end()
        if count and places[-1] >= size:
            raise DecodeError(f"place {places[-1]} of {size}")
        x = np.zeros(size, dtype)
        x[places] = np.where(negative, -level, level)
        x *= spread(norms / dtype.type(self.levels), size, self.bucket)
        return x

    def longest(self, size: int, dtype: np.dtype[Any]) -> int:
        """No coordinate 0, and all at the highest level.

        The code of a distance g has at most 2 g bits.
        """
        bits = size * (2 + 1 + omega_length(self.levels))
        return n_buckets(size, self.bucket) * dtype.itemsize + 8 + (bits + 7) // 8

    def _levels(self, x: Array, norms: Array, rng: np.random.Generator) -> Array:
        """Round s |x_i| / |x| up with the probability of what is behind its point."""
        divisor = np.where(norms > 0, norms, 1)
        level = np.abs(x) / spread(divisor, x.size, self.bucket)
        level *= level.dtype.type(self.levels)
        level += rng.random(x.size, dtype=level.dtype.type)
        np.floor(level, out=level)
        # s + u may be rounded to s + 1.
        return np.minimum(level, self.levels, out=level)


def _norms(rows: Array) -> NDArray[Any]:
    """Euclidean norms, rounded up, so that no coordinate is above its norm; no square overflows."""
    largest = np.abs(rows).max(axis=1)
    scaled = rows / np.where(largest > 0, largest, 1)[:, None]
    exact = np.sqrt(np.einsum("ij,ij->i", scaled, scaled, dtype=np.float64)) * largest
    # A norm above the largest float32 is cut at it, and its coordinates with it.
    exact = np.minimum(exact, np.finfo(rows.dtype).max)
    norms = exact.astype(rows.dtype)
    return np.where(norms < exact, np.nextafter(norms, np.inf, dtype=rows.dtype), norms)
