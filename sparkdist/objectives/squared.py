"""Squared loss, for regression."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparkdist.blocks import Array
from sparkdist.objectives._base import MarginLoss

__all__ = ["Squared"]


@dataclass(frozen=True)
class Squared(MarginLoss):
    """Half the squared residual.

    For one row with margin m = x @ w::

        loss     = (m - y)^2 / 2
        gradient = (m - y) x
        Hessian  = x x'

    Labels are any finite numbers.

    Source: Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 2nd ed.,
    equation (3.2), which leaves out the 1/2; the 1/2 makes the curvature 1.
    """

    def loss_and_slope(self, m: Array, y: Array) -> tuple[Array, Array]:
        """Loss and its derivative in the margin."""
        r = m - y
        return 0.5 * r * r, r

    def curvature(self, m: Array, y: Array) -> Array:
        """One, everywhere."""
        return np.ones_like(m)
