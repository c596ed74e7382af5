"""Squared hinge loss, for two classes: the differentiable support vector machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparkdist.blocks import Array
from sparkdist.objectives._binary import BinaryLoss

__all__ = ["SquaredHinge"]


@dataclass(frozen=True)
class SquaredHinge(BinaryLoss):
    """Square of the hinge loss, without a factor 1/2: LIBLINEAR's L2-loss SVC.

    For one row with margin m = x @ w and sign s = +1 for class 1, -1 for the other class::

        loss     = max(0, 1 - s m)^2
        gradient = -2 s max(0, 1 - s m) x
        Hessian  = 2 x x'  if s m < 1, else 0

    The second derivative jumps at s m = 1; this is the generalised Hessian, with which
    Newton's method still converges.  Labels are {0, 1} or {-1, +1}.

    Source: Lin, Weng and Keerthi, Trust Region Newton Method for Large-Scale Logistic
    Regression, JMLR 9 (2008), the part on L2-loss support vector machines.
    """

    def phi(self, z: Array) -> tuple[Array, Array]:
        """max(0, 1 - z)^2 and its derivative."""
        gap = np.maximum(1.0 - z, 0.0)
        return gap * gap, -2.0 * gap

    def phi_second(self, z: Array) -> Array:
        """2 where the row costs something, else 0."""
        return np.where(z < 1.0, 2.0, 0.0)

    def expected_curvature(self, m: Array, y: Array) -> Array:
        """2 for every row: which ones will cost something is not known yet."""
        return np.full_like(m, 2.0)
