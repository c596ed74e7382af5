"""Body: the bytes of a payload, taken apart from front to back, and never further than they go."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sparkdist.errors import DecodeError

__all__ = ["Bits", "Body", "BoolArray", "as_bits", "pack"]

BoolArray: TypeAlias = NDArray[np.bool_]


class Body:
    """Numbers that lie one behind the other; asking for what is not there is a DecodeError."""

    def __init__(self, data: memoryview):
        self._left = data

    def take(self, dtype: Any, count: int) -> NDArray[Any]:
        """Return the next ``count`` numbers: a view of the bytes."""
        n_bytes = count * np.dtype(dtype).itemsize
        if n_bytes > len(self._left):
            raise DecodeError(f"the payload is cut: {n_bytes - len(self._left)} bytes are missing")
        taken, self._left = self._left[:n_bytes], self._left[n_bytes:]
        return np.frombuffer(taken, dtype, count)

    def count(self, most: int) -> int:
        """Return the next number, of eight bytes, which is at most ``most``."""
        found = int(self.take("<u8", 1)[0])
        if found > most:
            raise DecodeError(f"{found} values where {most} are the most")
        return found

    def bits(self) -> Bits:
        """Return all that is left, bit by bit."""
        left, self._left = self._left, self._left[:0]
        return Bits(left)

    def end(self) -> None:
        """Refuse what is left."""
        if len(self._left):
            raise DecodeError(f"{len(self._left)} bytes too many")


class Bits:
    """Bits that lie one behind the other, a byte of memory each."""

    def __init__(self, data: memoryview):
        self._left: BoolArray = np.unpackbits(np.frombuffer(data, np.uint8)).view(np.bool_)

    def take(self, count: int) -> BoolArray:
        """Return the next ``count`` bits."""
        if count > self._left.size:
            raise DecodeError(f"the payload is cut: {count - self._left.size} bits are missing")
        taken, self._left = self._left[:count], self._left[count:]
        return taken

    def numbers(self, count: int, width: int) -> NDArray[np.int64]:
        """Return the next ``count`` numbers of ``width`` bits, at most 62, the highest first."""
        columns = self.take(count * width).reshape(count, width).T
        found = np.zeros(count, np.int64)
        for column in columns:
            found <<= 1
            found |= column
        return found

    def runs(self, count: int) -> NDArray[np.int64]:
        """Return the lengths of the next ``count`` runs of zeros, each of which a one ends."""
        ones = np.flatnonzero(self._left)[:count]
        if ones.size < count:
            raise DecodeError(f"the payload is cut: {count - ones.size} codes are missing")
        if count:
            self._left = self._left[ones[-1] + 1 :]
        return np.diff(ones, prepend=-1) - 1

    def end(self) -> None:
        """Refuse what is left, but the zeros that fill the last byte."""
        if self._left.size >= 8 or self._left.any():
            raise DecodeError("there are bits behind the last code")


def as_bits(numbers: NDArray[np.int64], width: int) -> BoolArray:
    """Write numbers with ``width`` bits each, the highest first; higher bits are left out."""
    found = np.empty((width, numbers.size), np.bool_)
    for row, bits in enumerate(found):
        np.not_equal(numbers & (1 << (width - 1 - row)), 0, out=bits)
    return found.T.ravel()


def pack(parts: Iterable[BoolArray]) -> bytes:
    """Put bits into bytes; zeros fill the last one."""
    return np.packbits(np.concatenate([*parts, np.zeros(0, np.bool_)])).tobytes()
