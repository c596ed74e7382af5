"""Cross-entropy of scores, class after class: what softmax losses share, whatever gives the scores.

S has shape (K, n), not (n, K): NumPy then reduces and scales whole vectors of n, where 10 classes
a row would leave it 10 elements at a time.
"""

from __future__ import annotations

import numpy as np
from scipy.special import softmax

from sparkdist.blocks import Array

__all__ = ["cross_entropy", "cross_entropy_curvature"]


def cross_entropy(S: Array, y: Array, weight: Array) -> float:
    """Sum of weight * (log(sum_k exp(S_k)) - S_y); overwrites S with its derivatives in S.

    The sum is taken in the dtype of ``weight``, everything else in that of S.
    """
    own = (y.astype(np.intp), np.arange(y.size))
    S -= S.max(axis=0)  # the largest exponential of each row is 1: none overflows
    own_score = S[own]
    np.exp(S, out=S)
    total = S.sum(axis=0)
    loss = weight @ (np.log(total) - own_score)
    # Of one dtype: a product of float32 and float64 goes through a buffer and takes twice as long.
    S *= (weight / total).astype(S.dtype, copy=False)
    S[own] -= weight
    return float(loss)


def cross_entropy_curvature(S: Array, U: Array, weight: Array) -> Array:
    """Second derivatives at S times U: weight * (p * u - p (p @ u)) for each row; overwrites U."""
    P = softmax(S, axis=0)
    U -= np.einsum("kn,kn->n", P, U)
    U *= P
    U *= weight.astype(U.dtype, copy=False)
    return U
