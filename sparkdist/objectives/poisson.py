"""Poisson loss, for counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from sparkdist.blocks import Array
from sparkdist.objectives._base import MarginLoss

__all__ = ["Poisson"]

# exp overflows at 709.  From 500 on the loss goes on along its tangent, convex and with a
# continuous slope, so that a line search which tries too long a step sees a huge loss
# and shortens it, instead of seeing inf and NaN.  exp(500) = 1e217 leaves room for products
# with the data and for the sum over all rows; no count has a logarithm of 500.
_STRAIGHT_FROM = 500.0


@dataclass(frozen=True)
class Poisson(MarginLoss):
    """Negative log-likelihood of counts whose logarithmic mean is linear in x.

    For one row with margin m = x @ w and count y, for all m below 500::

        loss     = exp(m) - y m          (the constant log(y!) is left out)
        gradient = (exp(m) - y) x
        Hessian  = exp(m) x x'

    Above 500 the exponential is continued by its tangent.  Labels are numbers >= 0; they
    need not be whole.

    Source: McCullagh and Nelder, Generalized Linear Models, 2nd ed., chapter 6.
    """

    def loss_and_slope(self, m: Array, y: Array) -> tuple[Array, Array]:
        """Loss and its derivative in the margin."""
        below = np.minimum(m, _STRAIGHT_FROM)
        mean = np.exp(below)
        return mean * (1.0 + (m - below)) - y * m, mean - y

    def expected_curvature(self, m: Array, y: Array) -> Array:
        """exp(m), or y where that is more: what exp(m) is to become."""
        return np.maximum(self.curvature(m, y), y)

    def curvature(self, m: Array, y: Array) -> Array:
        """exp(m), and zero on the straight part."""
        return np.where(m < _STRAIGHT_FROM, np.exp(np.minimum(m, _STRAIGHT_FROM)), 0.0)

    def predict(self, scores: Array) -> Array:
        """Return the expected count, exp(score): inf where that is above 1e308."""
        with np.errstate(over="ignore"):
            return np.exp(scores)

    def pool(self, scores: Array, shares: Array) -> Array:
        """Return the logarithm of the mean expected count."""
        return logsumexp(scores, axis=0, b=shares[:, None])

    def bad_labels(self, labels: Array) -> Array:
        """Labels that are negative or not finite."""
        return labels[~((labels >= 0) & np.isfinite(labels))]

    def label_rule(self) -> str:
        """Say that the labels are counts."""
        return "finite numbers >= 0"
