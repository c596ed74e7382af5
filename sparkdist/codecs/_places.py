"""Values at some places of a vector: the values as they are, the places as Golomb-Rice code.

::

    8 bytes   n, how many
    1 byte    b
    values    n of them, of the vector's type
    bits      the lowest b bits of each gap; then gap >> b zeros and a one, for each

A gap is the number of places left out before one.  If n of d places are chosen at random, gaps
are geometric, for which this code is the shortest that gives each number a codeword of its own:
with b near log2(ln 2 d / n) a place takes about log2(d / n) + 1.5 bits, and never more than
log2(d / n) + 3 on the average, wherever the places are.

Source: Rice, Some Practical Universal Noiseless Coding Techniques, JPL Publication 79-22 (1979);
of geometric numbers, Golomb, Run-Length Encodings, IEEE Transactions on Information Theory 12
(1966).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkdist.blocks import Array
from sparkdist.codecs._base import Indices, Values
from sparkdist.codecs._body import Body, as_bits, pack
from sparkdist.errors import DecodeError

__all__ = ["longest_places", "read_places", "write_places"]

_HEAD = 9


def write_places(values: Array, indices: Indices) -> bytes:
    """Write values and their indices, which ascend."""
    gaps = np.diff(indices, prepend=-1) - 1
    b, ends = _shortest(gaps)
    ones = np.zeros(int(ends[-1]) + 1 if ends.size else 0, np.bool_)
    ones[ends] = True
    head = values.size.to_bytes(8, "little") + bytes([b])
    return head + values.tobytes() + pack([as_bits(gaps, b), ones])


def read_places(body: memoryview, size: int, dtype: np.dtype[Any], most: int) -> Values:
    """Read at most ``most`` values and their indices below ``size``."""
    parts = Body(body)
    count = parts.count(most)
    b = int(parts.take(np.uint8, 1)[0])
    if b > _widest(size):
        raise DecodeError(f"gaps of {b} bits and more among {size} places")
    values = parts.take(dtype, count)
    bits = parts.bits()
    low, high = bits.numbers(count, b), bits.runs(count)
    bits.end()
    # Before they are shifted and added: what is too far may be too far for int64.
    if int(high.sum()) > size >> b:
        raise DecodeError(f"a place beyond {size}")
    indices = np.cumsum((high << b) + low + 1) - 1
    if count and indices[-1] >= size:
        raise DecodeError(f"place {indices[-1]} of {size}")
    return values, indices


def longest_places(most: int, size: int, itemsize: int) -> int:
    """Length of at most ``most`` values of a vector, in bytes.

    With any b the high parts add up to at most size >> b, and the writer takes the best b.
    """
    b = max(0, (size // most).bit_length() - 1)
    return _HEAD + most * itemsize + (most * (b + 1) + (size >> b) + 7) // 8


def _shortest(gaps: NDArray[np.int64]) -> tuple[int, NDArray[np.int64]]:
    """Find b with the fewest bits; return it, and where the ones of the high parts are.

    The length n (b + 1) + sum(gap >> b) is convex in b: its sum falls by ceil((gap >> b) / 2) in
    each term, and that falls with b.  So the first b after which it grows is the best.
    """
    b, high, total = 0, gaps, int(gaps.sum())
    while True:
        halved = high >> 1
        saved = total - (total := int(halved.sum()))
        if saved <= gaps.size:
            return b, np.cumsum(high + 1) - 1
        b, high = b + 1, halved


def _widest(size: int) -> int:
    return size.bit_length()
