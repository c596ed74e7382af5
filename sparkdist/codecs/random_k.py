"""Coordinates at random."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparkdist.blocks import Array
from sparkdist.codecs._base import Indices, SparseCodec, State, Values
from sparkdist.codecs._body import Body
from sparkdist.fields import flag, settle, share

__all__ = ["random_k"]


@dataclass(frozen=True)
class random_k(SparseCodec):
    """Send k = ``fraction`` d coordinates, chosen at random each time, at least one.

    ::

        scaled      d/k x_i   E C(x) = x       E |C(x) - x|^2 = (d/k - 1) |x|^2
        not scaled      x_i   E C(x) = k/d x   E |C(x) - x|^2 = (1 - k/d) |x|^2

    Which ones they are follows from eight bytes that travel instead of the places: the k smallest
    of d raw numbers of PCG64, whose stream NumPy does not change between versions, as it may that
    of ``Generator.choice``.  Scaled, it is unbiased, with much variance; error feedback needs it
    not scaled.

    Source: Stich, Cordonnier and Jaggi, Sparsified SGD with Memory, NeurIPS 2018, Lemma A.1;
    scaled, Wangni et al., Gradient Sparsification for Communication-Efficient Distributed
    Optimization, NeurIPS 2018, with equal probabilities.
    """

    fraction: float = 0.01
    scaled: bool = True

    def __post_init__(self) -> None:
        settle(self, fraction=share, scaled=flag)
        object.__setattr__(self, "unbiased", self.scaled)
        object.__setattr__(self, "contractive", not self.scaled)

    def write(self, x: Array, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Write the seed of the places, and the values."""
        seed, k = int(rng.integers(1 << 63)), self.count(x.size)
        values = x[_chosen(seed, x.size, k)]
        if self.scaled:
            values = values * (x.size / k)
        return seed.to_bytes(8, "little") + values.tobytes(), state

    def read_sparse(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Values:
        """Return the values and their indices."""
        parts, k = Body(body), self.count(size)
        seed = int(parts.take("<u8", 1)[0])
        values = parts.take(dtype, k)
        parts.end()
        return values, _chosen(seed, size, k)

    def longest(self, size: int, dtype: np.dtype[Any]) -> int:
        """The seed and k values: always."""
        return 8 + self.count(size) * dtype.itemsize

    def count(self, size: int) -> int:
        """Return k, of ``size`` coordinates, which are not none."""
        return max(1, round(self.fraction * size))


def _chosen(seed: int, size: int, k: int) -> Indices:
    keys = np.random.PCG64(seed).random_raw(size)
    # By the value of the k-th, not by argpartition: of equal keys the first ones count.
    return np.flatnonzero(keys <= np.partition(keys, k - 1)[k - 1])[:k]
