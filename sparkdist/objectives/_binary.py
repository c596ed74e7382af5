"""What the losses for two classes share: their labels and their decision."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np

from sparkdist.blocks import Array
from sparkdist.objectives._base import MarginLoss

__all__ = ["BinaryLoss"]


class BinaryLoss(MarginLoss):
    """A loss phi(z) of z = s * m, with s = +1 for class 1 and -1 for the other class.

    Labels are {0, 1} or {-1, +1}; positive means class 1.
    """

    classifies = True

    @abstractmethod
    def phi(self, z: Array) -> tuple[Array, Array]:
        """Loss and its derivative in z, element by element; all of shape (n,)."""

    @abstractmethod
    def phi_second(self, z: Array) -> Array:
        """Second derivative of the loss in z, element by element; shape (n,)."""

    def loss_and_slope(self, m: Array, y: Array) -> tuple[Array, Array]:
        """Loss phi(s m) and its derivative s phi'(s m)."""
        sign = _sign(y)
        loss, slope = self.phi(sign * m)
        return loss, sign * slope

    def curvature(self, m: Array, y: Array) -> Array:
        """Second derivative phi''(s m): the two signs cancel."""
        return self.phi_second(_sign(y) * m)

    def predict(self, scores: Array) -> Array:
        """Class 1 where the score is positive, else class 0."""
        return (scores > 0).astype(np.float64)

    def bad_labels(self, labels: Array) -> Array:
        """Labels that are not in the one of the two conventions that the others follow."""
        convention = (-1.0, 1.0) if -1.0 in labels else (0.0, 1.0)
        return labels[~np.isin(labels, convention)]

    def label_rule(self) -> str:
        """Say the two conventions."""
        return "{0, 1} or {-1, +1}"


def _sign(y: Array) -> Array:
    """+1 for class 1, -1 for the class that is written 0 or -1."""
    return np.where(y > 0, 1.0, -1.0)
