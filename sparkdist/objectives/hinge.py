"""Hinge loss, for two classes: the linear support vector machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparkdist.blocks import Array
from sparkdist.objectives._binary import BinaryLoss

__all__ = ["Hinge"]


@dataclass(frozen=True)
class Hinge(BinaryLoss):
    """Hinge loss, of rows that are on the wrong side of their class's margin.

    For one row with margin m = x @ w and sign s = +1 for class 1, -1 for the other class::

        loss        = max(0, 1 - s m)
        subgradient = -s x  if s m < 1, else 0

    At the kink, s m = 1, the subgradient that is returned is 0.  Solvers that need a gradient
    everywhere should be given SquaredHinge.  Labels are {0, 1} or {-1, +1}.

    Source: Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 2nd ed.,
    equation (12.25).
    """

    differentiable = False
    twice = False

    def phi(self, z: Array) -> tuple[Array, Array]:
        """max(0, 1 - z) and a subgradient of it."""
        gap = np.maximum(1.0 - z, 0.0)
        return gap, -np.sign(gap)

    def phi_second(self, z: Array) -> Array:
        """Zero: the loss is made of two straight lines."""
        return np.zeros_like(z)
