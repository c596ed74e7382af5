"""What workers and the model server ask of a codec."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sparkdist.blocks import Array, all_finite
from sparkdist.errors import BadGradient, DecodeError

if TYPE_CHECKING:
    from sparkdist.layout import Layout

__all__ = ["Codec", "Indices", "SparseCodec", "State", "Values", "stream"]

#: What a codec remembers: a few arrays, or ().
State: TypeAlias = tuple[Array, ...]
Indices: TypeAlias = NDArray[np.int64]
#: Values, and where they are: indices ascend, each is there once.
Values: TypeAlias = tuple[Array, Indices]

_TAG = 4
#: Of no other stream that is drawn from a run's seed.
_STREAM = 0xC0DEC


def stream(seed: int, partition: int, clock: int) -> np.random.Generator:
    """Return the randomness of one push: whoever computes it again draws the same numbers."""
    entropy = np.random.SeedSequence([seed, partition, clock], spawn_key=(_STREAM,))
    return np.random.default_rng(entropy)


class Codec(ABC):
    """Makes few bytes of a vector, and a vector near it of the bytes.

    Conventions
    -----------
    A vector has shape (d,) and is float32 or float64; the receiver knows which, and d.  It is a
    mean over rows, not a sum: what a codec holds back is added to later vectors, which must be in
    the same unit, whatever the number of their rows.

    **Memory is an argument.**  ``encode`` is a pure function of the vector, the state and the
    stream of random numbers: it changes none of its arguments but the stream, and whoever calls
    it again with the same ones gets the same bytes.  The new state is that *after* the push has
    been applied; until the receiver says so, the old one holds.  If the sender is lost, its state
    comes from where the receiver has it: see ``rebuildable``.

    **Decoding is bounded.**  What the receiver knows (the codec, d and the type) says how long a
    payload can be at most, and how large the result is; nothing in the payload can make it
    larger.  Any bytes give a finite vector of shape (d,), or DecodeError, or BadGradient.

    A payload begins with a tag of four bytes, the CRC-32 of the codec with its parameters, the
    type and d, so that one that was made for another run is refused.  A vector that is not finite
    is a tag with nothing behind it: the receiver decides what becomes of it.

    A member refuses its arguments when it is made, all that are wrong in one InvalidCall.

    A member implements ``write``, ``read`` and ``longest``, which know nothing of tags, empty
    vectors and NaN.
    """

    #: Few values are not 0: ``decode_sparse`` is then cheaper than ``decode``.
    sparse = False
    #: E decode(encode(x)) = x.
    unbiased = False
    #: E |decode(encode(x)) - x|^2 <= |x|^2, less where x is not 0: error feedback may wrap it.
    contractive = False
    #: ``rebuild`` gives the sender's state from what it sent, so that the receiver has it for
    #: nothing.  Where this is False, a state must be sent to be safe: d numbers.
    rebuildable = True
    #: What is decoded is to be added to the vector that the same sender meant before: the new
    #: vector is the first array of the state that ``rebuild`` returns.
    differences = False

    def bind(self, layout: Layout) -> Codec:
        """Return the codec for models of this layout; most look at the flat vector alone."""
        return self

    def init(self, size: int, dtype: DTypeLike) -> State:
        """Return the state before the first vector."""
        return ()

    def encode(self, x: Array, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Return the bytes to send, and the state once they have been applied.

        ``len`` of the bytes is what travels.  ``rng`` comes from :func:`stream`.
        """
        tag = self._tag(x.size, x.dtype)
        if x.size == 0 or not all_finite(x):
            return tag, state
        try:
            with np.errstate(over="raise", divide="raise", invalid="raise"):
                body, new = self.write(x, state, rng)
        except FloatingPointError:
            # Floats near the largest: their sum, or sum with what was held back, is none.
            return tag, state
        return tag + body, new

    def decode(self, payload: bytes | memoryview, size: int, dtype: DTypeLike) -> Array:
        """Return the vector that a payload stands for, shape (size,), all finite.

        Raises
        ------
        DecodeError
            For bytes that this codec does not make of a vector of this size and type.
        BadGradient
            For a vector that is not finite, or was not where it was encoded.
        """
        dtype = np.dtype(dtype)
        body = self._open(payload, size, dtype)
        with np.errstate(all="ignore"):
            x = self.read(body, size, dtype) if size else np.zeros(0, dtype)
        _refuse_not_finite(x)
        return x

    def decode_sparse(self, payload: bytes | memoryview, size: int, dtype: DTypeLike) -> Values:
        """Return the values that were sent and their indices; raises what ``decode`` does.

        Where the codec is ``sparse``, nothing of the size of the vector is made.
        """
        dtype = np.dtype(dtype)
        body = self._open(payload, size, dtype)
        if not size:
            return np.zeros(0, dtype), np.zeros(0, np.int64)
        with np.errstate(all="ignore"):
            values, indices = self.read_sparse(body, size, dtype)
        _refuse_not_finite(values)
        return values, indices

    def rebuild(
        self, payload: bytes | memoryview, size: int, dtype: DTypeLike, state: State
    ) -> State:
        """Return the state that ``encode`` returned with a payload, bit for bit.

        ``state`` is the one that it was given.  Only where ``rebuildable``; raises what
        ``decode`` does.
        """
        dtype = np.dtype(dtype)
        body = self._open(payload, size, dtype)
        with np.errstate(all="ignore"):
            new = self.after(body, size, dtype, state) if size else state
        for array in new:
            _refuse_not_finite(array)
        return new

    def max_bytes(self, size: int, dtype: DTypeLike) -> int:
        """Return the length that no payload exceeds; longer ones are refused unread."""
        return _TAG + (self.longest(size, np.dtype(dtype)) if size else 0)

    @abstractmethod
    def write(self, x: Array, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Return a payload without its tag, and the new state; x is finite and not empty.

        An overflow may be left to NumPy, which raises FloatingPointError here.
        """

    @abstractmethod
    def read(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Array:
        """Return the vector of a payload without its tag; size is not 0.

        What is not finite may be returned; anything else that ``write`` does not write raises
        DecodeError.
        """

    def read_sparse(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Values:
        """Return the same as values and indices."""
        x = self.read(body, size, dtype)
        indices = np.flatnonzero(x)
        return x[indices], indices

    @abstractmethod
    def longest(self, size: int, dtype: np.dtype[Any]) -> int:
        """Return what ``write`` writes at most, in bytes."""

    def after(self, body: memoryview, size: int, dtype: np.dtype[Any], state: State) -> State:
        """Return the state that ``write`` returned with a body: the same, if it remembers none."""
        return state

    def _tag(self, size: int, dtype: np.dtype[Any]) -> bytes:
        return zlib.crc32(f"{self} {dtype.str} {size}".encode()).to_bytes(_TAG, "little")

    def _open(self, payload: bytes | memoryview, size: int, dtype: np.dtype[Any]) -> memoryview:
        """Look at length and tag before anything is read; return what is behind the tag."""
        view = memoryview(payload).cast("B")
        if len(view) > (most := self.max_bytes(size, dtype)):
            raise DecodeError(f"a payload of {len(view)} bytes; {self} makes {most} at most")
        if view[:_TAG] != self._tag(size, dtype):
            raise DecodeError(f"not what {self} makes of {size} numbers of type {dtype.str}")
        if size and len(view) == _TAG:
            raise BadGradient("the vector was not finite where it was encoded", "not_finite")
        return view[_TAG:]


class SparseCodec(Codec):
    """A codec that sends some of the values, each with its place; the others are 0."""

    sparse = True

    @abstractmethod
    def read_sparse(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Values:
        """Return the values and their indices, of a payload without its tag."""

    def read(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Array:
        """Return the vector, 0 where nothing was sent."""
        values, indices = self.read_sparse(body, size, dtype)
        x = np.zeros(size, dtype)
        x[indices] = values
        return x


def _refuse_not_finite(values: Array) -> None:
    if not all_finite(values):
        raise BadGradient("the decoded vector is not finite", "not_finite")
