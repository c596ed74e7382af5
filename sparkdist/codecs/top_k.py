"""The largest coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparkdist.blocks import Array
from sparkdist.codecs._base import Indices, SparseCodec, State, Values
from sparkdist.codecs._places import longest_places, read_places, write_places
from sparkdist.fields import settle, share

__all__ = ["top_k"]


@dataclass(frozen=True)
class top_k(SparseCodec):
    """Send the k = ``fraction`` d coordinates with the largest absolute values, exactly.

    ::

        |x - C(x)|^2 <= (1 - k/d) |x|^2

    At least one is sent, and none that is 0; of equal ones those that come first.  What is not
    sent is lost: wrap it in error_feedback or ef21.

    Source: Aji and Heafield, Sparse Communication for Distributed Gradient Descent, EMNLP 2017;
    the contraction, Stich, Cordonnier and Jaggi, Sparsified SGD with Memory, NeurIPS 2018,
    Lemma A.1.
    """

    fraction: float = 0.01

    contractive = True

    def __post_init__(self) -> None:
        settle(self, fraction=share)

    def write(self, x: Array, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Write the largest."""
        indices = _largest(np.abs(x), self.count(x.size))
        return write_places(x[indices], indices), state

    def read_sparse(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Values:
        """Return the values and their indices."""
        return read_places(body, size, dtype, self.count(size))

    def longest(self, size: int, dtype: np.dtype[Any]) -> int:
        """Of k values and their places."""
        return longest_places(self.count(size), size, dtype.itemsize)

    def count(self, size: int) -> int:
        """Return k, of ``size`` coordinates, which are not none."""
        return max(1, round(self.fraction * size))


def _largest(magnitude: Array, k: int) -> Indices:
    """Return where the k largest are, in ascending order; a partial sort leaves ties to chance."""
    least = np.partition(magnitude, magnitude.size - k)[magnitude.size - k]
    if least == 0:
        return np.flatnonzero(magnitude)
    larger = np.flatnonzero(magnitude > least)
    equal = np.flatnonzero(magnitude == least)[: k - larger.size]
    return np.sort(np.concatenate([larger, equal]))
