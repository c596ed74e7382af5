"""Half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparkdist.blocks import Array
from sparkdist.codecs._base import Codec, State
from sparkdist.codecs._body import Body

__all__ = ["float16"]

#: Of the scaled vector the largest value is in [2^14, 2^15); float16 ends at 65,504.
_TOP = 15


@dataclass(frozen=True)
class float16(Codec):
    """Round to 11 significant bits: 2 bytes a coordinate.

    ::

        e = 14 - floor(log2(max |x|));  send e and float16(2^e x)

    The scale keeps large values from overflowing, and small ones from becoming 0: with it the
    error is at most 2^-11 |x_i| down to 2^-28 of the largest, and below that at most 2^-39 of the
    largest.

    Source: IEEE 754-2019, binary16; one scale for the vector, Micikevicius et al., Mixed
    Precision Training, ICLR 2018, section 3.2.
    """

    contractive = True

    def write(self, x: Array, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Write the exponent, two bytes, and the halves."""
        exponent = _TOP - int(np.frexp(np.abs(x).max())[1])
        half = np.ldexp(x, exponent).astype(np.float16)
        return np.int16(exponent).tobytes() + half.tobytes(), state

    def read(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Array:
        """Scale the halves back."""
        parts = Body(body)
        exponent = int(parts.take("<i2", 1)[0])
        half = parts.take("<f2", size)
        parts.end()
        return np.ldexp(half.astype(dtype), -exponent)

    def longest(self, size: int, dtype: np.dtype[Any]) -> int:
        """Two bytes, and two a coordinate: always."""
        return 2 + 2 * size
