"""Logistic loss, for two classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expit, log_expit, logsumexp

from sparkdist.blocks import Array
from sparkdist.objectives._binary import BinaryLoss

__all__ = ["Logistic"]


@dataclass(frozen=True)
class Logistic(BinaryLoss):
    """Negative log-likelihood of two classes under a logistic model.

    For one row with margin m = x @ w and sign s = +1 for class 1, -1 for the other class::

        loss     = log(1 + exp(-s m))
        gradient = -s expit(-s m) x
        Hessian  = expit(m) expit(-m) x x'

    Labels are {0, 1} or {-1, +1}.

    Source: Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 2nd ed.,
    section 4.4.1, where class 0 has the label 0.
    """

    def phi(self, z: Array) -> tuple[Array, Array]:
        """log(1 + exp(-z)) and -expit(-z), both exact at any z, from one exponential."""
        # exp overflows at 709.  At 700 the loss is already -z to the last bit, so the
        # exponential may stop there and the rest of -z be added.  logaddexp and expit, which
        # call the C library for each element, take four times as long: 89 against 21
        # microseconds for 5000 rows, whose two products with X take 115 when d is 100.
        odds = np.exp(np.minimum(-z, 700.0))
        beyond = np.maximum(-700.0 - z, 0.0)
        return np.log1p(odds) + beyond, odds / (-1.0 - odds)

    def phi_second(self, z: Array) -> Array:
        """expit(z) expit(-z), an even function, which exp(-|z|) gives without cancellation."""
        small = np.exp(-np.abs(z))
        return small / np.square(1.0 + small)

    def expected_curvature(self, m: Array, y: Array) -> Array:
        """Second derivative; on the wrong side of 0 that of the parabola that touches from above.

        Far on the wrong side the loss is a straight line, which ends at 0: tanh(|m|/2) / (2|m|).

        Source: Jaakkola and Jordan, Bayesian Parameter Estimation via Variational Methods,
        Statistics and Computing 10 (2000).
        """
        size = np.maximum(np.abs(m), 1e-8)
        touching = np.tanh(size / 2) / (2 * size)
        return np.where(np.where(y > 0, m, -m) < 0, touching, self.curvature(m, y))

    def probability(self, scores: Array) -> Array:
        """P(class 1), shape (n,)."""
        return expit(scores)

    def pool(self, scores: Array, shares: Array) -> Array:
        """Return log(p / (1 - p)) of the mean probability p, exact at any score."""
        both = (logsumexp(log_expit(s), axis=0, b=shares[:, None]) for s in (scores, -scores))
        return np.subtract(*both)
