"""Matrices of low rank."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isqrt, prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike

from sparkdist.blocks import Array, all_finite
from sparkdist.codecs._base import Codec, State
from sparkdist.codecs._body import Body
from sparkdist.errors import InvalidCall
from sparkdist.fields import settle, whole

if TYPE_CHECKING:
    from sparkdist.layout import Layout

__all__ = ["power_sgd"]

Shape = tuple[int, ...]


class Part(NamedTuple):
    """An array of the model: where it lies, as a matrix of (a, b), and its rank, 0 for as it is."""

    where: slice
    a: int
    b: int
    rank: int


@dataclass(frozen=True)
class power_sgd(Codec):
    """Send of each matrix two thin factors, from one step of a power iteration that goes on.

    For M of shape (a, b), and Q of shape (b, ``rank``) of the last time, at first Gaussian::

        P <- orthonormal columns of M Q;  Q <- M' P;  send P and Q
        C(M) = P Q' = P P' M

    An orthogonal projection of M, so the error is never larger than M.  If M stays the same, it
    comes near the best approximation of this rank; if its rank is no higher, it is exact at once.
    Vectors, and matrices for which the factors are not shorter, are sent as they are; an array of
    more than two dimensions is a matrix of its first one and the others.  Wrap it in
    error_feedback.

    Each worker makes factors of its own gradient, so that a mean over K of them has a rank up to
    K ``rank``.  The paper has one pair for all, in two rounds of all-reduce a step, for which a
    push has no room.

    ``shapes`` are those of the model's arrays, which ``bind`` fills in.  While they are None a
    vector is folded into a matrix, nearly square, with zeros at the end.

    Source: Vogels, Karimireddy and Jaggi, PowerSGD: Practical Low-Rank Gradient Compression for
    Distributed Optimization, NeurIPS 2019, Algorithm 1.
    """

    rank: int = 2
    shapes: tuple[Shape, ...] | None = None

    contractive = True

    def __post_init__(self) -> None:
        settle(self, rank=whole(1, 1 << 16))

    def bind(self, layout: Layout) -> power_sgd:
        """Take the shapes of the model's arrays."""
        return replace(self, shapes=tuple(shape for _, shape in layout.shapes))

    def init(self, size: int, dtype: DTypeLike) -> State:
        """Gaussian Q, the same for every worker."""
        rng = np.random.default_rng(0)
        parts = (part for part in self._parts(size) if part.rank)
        return tuple(rng.standard_normal((part.b, part.rank)).astype(dtype) for part in parts)

    def write(self, x: Array, state: State, rng: np.random.Generator) -> tuple[bytes, State]:
        """Write the factors of each matrix, and the other arrays as they are."""
        pieces: list[Array] = []
        new: list[Array] = []
        for part in self._parts(x.size):
            if part.rank:
                P, Q = _factors(_matrix(x[part.where], part), state[len(new)])
                pieces += [P, Q]
                new.append(Q)
            else:
                pieces.append(x[part.where])
        return b"".join(piece.tobytes() for piece in pieces), tuple(new)

    def read(self, body: memoryview, size: int, dtype: np.dtype[Any]) -> Array:
        """Multiply the factors."""
        x, parts = np.empty(size, dtype), Body(body)
        for part in self._parts(size):
            n = part.where.stop - part.where.start
            if part.rank:
                P, Q = _take_factors(parts, part, dtype)
                x[part.where] = (P @ Q.T).ravel()[:n]
            else:
                x[part.where] = parts.take(dtype, n)
        parts.end()
        return x

    def longest(self, size: int, dtype: np.dtype[Any]) -> int:
        """The factors, and the other arrays: always."""
        return dtype.itemsize * sum(_n_numbers(part) for part in self._parts(size))

    def after(self, body: memoryview, size: int, dtype: np.dtype[Any], state: State) -> State:
        """Return the Q that were sent."""
        parts, found = Body(body), []
        for part in self._parts(size):
            if part.rank:
                # A copy: a view would keep the whole body for as long as the state lasts.
                found.append(_take_factors(parts, part, dtype)[1].copy())
            else:
                parts.take(dtype, part.where.stop - part.where.start)
        parts.end()
        return tuple(found)

    def _parts(self, size: int) -> Iterator[Part]:
        if self.shapes is None:
            a = isqrt(max(size, 1) - 1) + 1
            yield self._part(slice(0, size), a, -(-size // a))
            return
        if (held := sum(map(prod, self.shapes))) != size:
            raise InvalidCall("power_sgd", [f"shapes hold {held} numbers, the vector has {size}"])
        start = 0
        for shape in self.shapes:
            a, b = (shape[0], prod(shape[1:])) if len(shape) > 1 else (1, prod(shape))
            yield self._part(slice(start, start + a * b), a, b)
            start += a * b

    def _part(self, where: slice, a: int, b: int) -> Part:
        part = Part(where, a, b, min(self.rank, a, b))
        whole = part._replace(rank=0)
        return part if _n_numbers(part) < _n_numbers(whole) else whole


def _n_numbers(part: Part) -> int:
    """How many numbers are sent."""
    return part.rank * (part.a + part.b) if part.rank else part.where.stop - part.where.start


def _matrix(x: Array, part: Part) -> Array:
    if x.size < part.a * part.b:
        x = np.concatenate([x, np.zeros(part.a * part.b - x.size, x.dtype)])
    return x.reshape(part.a, part.b)


def _factors(M: Array, Q: Array) -> tuple[Array, Array]:
    # Q has the size of the last M: without it, products would overflow, or vanish, much earlier.
    largest = np.abs(Q).max()
    # Householder's method gives orthonormal columns even of zeros: no direction is lost for good.
    P = np.linalg.qr(M @ (Q / largest if largest else Q))[0]
    Q = M.T @ P
    if not (all_finite(P) and all_finite(Q)):
        raise FloatingPointError("the factors overflow")
    return P, Q


def _take_factors(parts: Body, part: Part, dtype: np.dtype[Any]) -> tuple[Array, Array]:
    P = parts.take(dtype, part.a * part.rank).reshape(part.a, part.rank)
    return P, parts.take(dtype, part.b * part.rank).reshape(part.b, part.rank)
