"""Elias omega code: each whole number from 1 on has a codeword, small ones a short one.

The codeword of k is made from behind: a 0 at the end, and before it, while k is not 1, the binary
digits of k, and then the same for k <- their number - 1::

    1  0        2  10 0        4  10 100 0        16  10 100 10000 0

Here the codewords of many numbers are sent layer by layer: the first bit of each, which says
whether it goes on; the other bits of the first groups of those that do; the next bit of each of
these; and so on.  They are the same bits, so they take the same room, and a single number is its
codeword; but NumPy reads and writes a layer at once, whereas where the next codeword begins could
only be told once the last one had been read.

Source: Elias, Universal Codeword Sets and Representations of the Integers, IEEE Transactions on
Information Theory 21 (1975).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sparkdist.codecs._body import Bits, BoolArray, as_bits
from sparkdist.errors import DecodeError

__all__ = ["omega", "omega_length", "read_omega"]

#: The least numbers whose codewords have 1, 2, 3 and 4 groups; 5 begin at 2^65536.
_GROUPS = np.array([2, 4, 16, 65536])
#: Numbers stay below 2^53, where float64 counts exactly.
_WIDEST = 52


def omega(numbers: NDArray[np.int64]) -> Iterator[BoolArray]:
    """Give the bits of the codewords of numbers from 1 to 2^53 - 1, layer by layer."""
    groups_left = np.searchsorted(_GROUPS, numbers, side="right")
    width = np.ones_like(numbers)
    while numbers.size:
        more = groups_left > 0
        yield more
        numbers, width, groups_left = numbers[more], width[more], groups_left[more] - 1
        group = _logarithms(numbers, groups_left)
        for bits in np.unique(width):
            yield as_bits(group[width == bits], int(bits))
        width = group


def read_omega(bits: Bits, count: int, largest: int) -> NDArray[np.int64]:
    """Read ``count`` codewords of numbers up to ``largest``."""
    numbers = np.ones(count, np.int64)
    open_ = np.arange(count)
    while open_.size:
        open_ = open_[bits.take(open_.size)]
        width = numbers[open_]
        for n_bits in np.unique(width).tolist():
            if n_bits > _WIDEST:
                raise DecodeError(f"a number of {n_bits} bits; {largest} is the largest")
            these = open_[width == n_bits]
            numbers[these] = bits.numbers(these.size, n_bits) + (1 << n_bits)
    if count and (found := int(numbers.max())) > largest:
        raise DecodeError(f"a number {found}; {largest} is the largest")
    return numbers


def omega_length(number: int) -> int:
    """Length of a number's codeword, in bits."""
    length = 1
    while number > 1:
        length += number.bit_length()
        number = number.bit_length() - 1
    return length


def _logarithms(numbers: NDArray[np.int64], times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Take floor(log2(k)) as many times as it says for each number."""
    found = numbers.copy()
    for done in range(int(times.max(initial=0))):
        again = times > done
        found[again] = np.frexp(found[again].astype(np.float64))[1] - 1
    return found
