"""What is not zero, without loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparkdist.blocks import Array
from sparkdist.codecs._base import SparseCodec, State, Values
from sparkdist.codecs._places import longest_places, read_places, write_places

__all__ = ["sparse"]


@dataclass(frozen=True)
class sparse(SparseCodec):
    """Send the values that are not 0, exactly, and their places: for gradients of sparse rows.

    A place takes about log2(d / n) + 1.5 bits if n of d are not 0; where none is 0, one bit.

    Source: of the places, Golomb-Rice code; see ``_places.py``.
    """

    unbiased = True
    contractive = True

    def write(self, x: Array, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Write all that is not 0."""
        indices = np.flatnonzero(x)
        return write_places(x[indices], indices), state

    def read_sparse(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Values:
        """Return the values and their indices."""
        return read_places(body, size, dtype, size)

    def longest(self, size: int, dtype: np.dtype[Any]) -> int:
        """All values, and a bit for each."""
        return longest_places(size, size, dtype.itemsize)
