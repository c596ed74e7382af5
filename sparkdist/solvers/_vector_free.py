"""The two-loop recursion on dot products alone, for vectors too long for one machine.

Where the vectors are spread over many machines, only the (2m + 1)^2 dot products between
them travel, and this says how to combine them; the machines do the rest on their shards.
"""

from __future__ import annotations

import numpy as np

from sparkdist.blocks import Array

__all__ = ["direction_coefficients"]


def direction_coefficients(gram: Array) -> Array:
    """Coefficients delta of the L-BFGS direction -H g in the basis s_1 .. s_m, y_1 .. y_m, g.

    ``gram`` holds the basis' dot products, shape (2m + 1, 2m + 1), the newest pair last.  The
    direction is ``sum(delta[j] * basis[j])``; it equals ``-inverse_hessian_times(g, pairs)`` up
    to rounding.

    Source: Chen, Wang and Zhou, Large-scale L-BFGS using MapReduce, NIPS 2014, Algorithm 3.
    """
    m = len(gram) // 2
    s, y = range(m), range(m, 2 * m)
    delta, alphas = np.zeros(2 * m + 1), np.zeros(m)
    delta[-1] = -1.0
    for i in reversed(range(m)):
        alphas[i] = delta @ gram[:, s[i]] / gram[s[i], y[i]]
        delta[y[i]] -= alphas[i]
    if m:
        delta *= gram[s[-1], y[-1]] / gram[y[-1], y[-1]]
    for i in range(m):
        beta = delta @ gram[:, y[i]] / gram[s[i], y[i]]
        delta[s[i]] += alphas[i] - beta
    return delta
