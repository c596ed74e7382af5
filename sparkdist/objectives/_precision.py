"""Products with the features in the precision that the features have."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparkdist.blocks import Array, Matrix

__all__ = ["in_precision_of", "times_vector"]

#: Numbers of columns for which a dot product a row beats BLAS: reading X from memory at
#: 16-20 GB/s instead of 9-16, 1.8 to 2.2 times the rate at 64 to 200 columns (OpenBLAS 0.3.31,
#: whose dgemv wants longer vectors; AVX-512, one thread; benchmarks/bench_products.py).  Below and
#: above BLAS is the faster.
_ROWWISE = range(32, 1001)


def in_precision_of(X: Matrix, B: Array, multiply: Callable[[Matrix, Array], Array]) -> Array:
    """Multiply X and B: in float32 where X is of float32, which halves the time of a dense product.

    The result is of float64 all the same, so that everything after it is.
    """
    if X.dtype != np.float32:
        return multiply(X, B)
    with np.errstate(over="ignore", invalid="ignore"):
        found = multiply(X, B.astype(np.float32, copy=False)).astype(np.float64)
        if np.isfinite(found.sum()):
            return found
    # Beyond 3.4e38, as in the too long trial step of a line search: float64 goes on to 1.8e308.
    return multiply(X.astype(np.float64), B)


def times_vector(X: Matrix, w: Array) -> Array:
    """X w for rows that lie one after the other, as those of blocks do; shape (n,)."""
    if isinstance(X, np.ndarray) and X.flags.c_contiguous and len(w) in _ROWWISE:
        return np.einsum("ij,j->i", X, w)
    return X @ w
