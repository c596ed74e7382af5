"""Matrices of a linear model's rows: how much they say in which direction."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import diags_array

from sparkdist.blocks import Array, Matrix

__all__ = ["gram"]


def gram(X: Matrix, c: Array, *, intercept: bool) -> Array:
    """X' diag(c) X, shape (d, d); with an intercept as if X had a last column of ones.

    c, of shape (n,), is not negative.  A product of a matrix with its own transpose takes BLAS
    half the operations.  In float32 where X is, which a preconditioner bears; it may overflow.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        return _gram(X, c, intercept)


def _gram(X: Matrix, c: Array, intercept: bool) -> Array:
    root = np.sqrt(c).astype(X.dtype)
    if isinstance(X, np.ndarray):
        Z: Any = X * root[:, np.newaxis]
        inner = Z.T @ Z
    else:
        Z = diags_array(root) @ X
        inner = (Z.T @ Z).toarray()
    found = np.asarray(inner, dtype=np.float64)
    if not intercept:
        return found
    edge = np.asarray(X.T @ c.astype(X.dtype), dtype=np.float64)
    return np.block([[found, edge[:, np.newaxis]], [edge, np.array([[c.sum()]])]])
