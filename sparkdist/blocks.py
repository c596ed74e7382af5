"""Block, the rows that one BLAS call works on, and Partial, the sums that it leaves."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

if TYPE_CHECKING:  # a server process starts in half the time without SciPy
    from scipy.sparse import csr_array

__all__ = ["Array", "Block", "Matrix", "Partial", "all_finite", "reals"]

Array: TypeAlias = NDArray[np.floating[Any]]
Matrix: TypeAlias = "Array | csr_array"


class Block(NamedTuple):
    """Some rows of the data: X of shape (n, d), dense or CSR; y and weight of shape (n,)."""

    X: Matrix
    y: Array
    weight: Array


@dataclass(frozen=True, slots=True)
class Partial:
    """Sums over some rows, never means: ``Partial + Partial`` is the only merge.

    Because the one division by ``weight`` happens after the last merge, how the rows
    are partitioned changes nothing but rounding.
    """

    loss: float
    grad: Array
    weight: float

    def __add__(self, other: Partial) -> Partial:
        return Partial(self.loss + other.loss, self.grad + other.grad, self.weight + other.weight)

    @classmethod
    def nothing(cls) -> Partial:
        """The sums over no rows.  Its gradient is a scalar zero, which adds to any shape.

        A vector of zeros would be shipped with every task: Spark pull request 15963.
        """
        return cls(0.0, np.zeros(()), 0.0)


def reals(values: Any, dtype: DTypeLike = np.float64) -> Array:
    """Return an array of floating-point numbers; of an array of ``dtype``, itself.

    Raises
    ------
    TypeError, ValueError
        For what is no number; also for what NumPy would make one without a word: complex numbers,
        of which half would be lost, dates, and masked values, which would count.
    """
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError("some of its values are masked")
    found = np.asarray(values)
    if found.dtype.kind in "cmM":
        raise ValueError(f"it holds {found.dtype}")
    return found.astype(dtype, copy=False)


def all_finite(values: Array) -> bool:
    """Whether there is neither NaN nor infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        # The sum of squares needs no memory and half the time of a sum, and a square that is not
        # finite stays in it; where it overflows, the elements decide.
        return isfinite(np.vdot(values, values)) or bool(np.isfinite(values).all())
