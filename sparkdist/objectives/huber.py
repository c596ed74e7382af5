"""Huber's loss, for regression with outliers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparkdist.blocks import Array
from sparkdist.fields import positive, settle
from sparkdist.objectives._base import MarginLoss

__all__ = ["Huber"]


@dataclass(frozen=True)
class Huber(MarginLoss):
    """Squared loss of small residuals, absolute loss of large ones.

    For one row with residual r = x @ w - y::

        loss     = r^2 / 2                   if |r| <= delta
                   delta (|r| - delta / 2)   else
        gradient = clip(r, -delta, delta) x
        Hessian  = x x'  if |r| <= delta, else 0   (generalised: it jumps at |r| = delta)

    Labels are any finite numbers.  ``delta`` is in the units of the labels; the default, 1.35,
    is that of Spark's and scikit-learn's Huber regression, and keeps 95 % of the efficiency of
    least squares when the noise is Gaussian with unit variance.

    Source: Huber, Robust Estimation of a Location Parameter, Annals of Mathematical Statistics
    35 (1964).
    """

    delta: float = 1.35

    def __post_init__(self) -> None:
        settle(self, delta=positive)

    def loss_and_slope(self, m: Array, y: Array) -> tuple[Array, Array]:
        """Loss and its derivative in the margin."""
        r = m - y
        # With c = r inside and c = +-delta outside, c (r - c/2) is the loss of both cases.
        c = np.clip(r, -self.delta, self.delta)
        return c * (r - 0.5 * c), c

    def curvature(self, m: Array, y: Array) -> Array:
        """One for small residuals, zero for large ones."""
        return np.where(np.abs(m - y) <= self.delta, 1.0, 0.0)

    def expected_curvature(self, m: Array, y: Array) -> Array:
        """min(1, delta / |r|): of the parabola that touches the loss from above.

        Source: Holland and Welsch, Robust Regression Using Iteratively Reweighted Least-Squares,
        Communications in Statistics 6 (1977), the weights of Huber's loss.
        """
        return self.delta / np.maximum(np.abs(m - y), self.delta)
