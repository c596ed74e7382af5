"""What solvers ask of a penalty."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from sparkdist.blocks import Array

__all__ = ["Penalty"]


class Penalty(ABC):
    """The function l1 ||w||_1 + (l2 / 2) ||w||_2^2 of a parameter vector w of any shape.

    Conventions
    -----------
    It is added to the mean loss, once, by the caller: never on the workers, never per row.

    It acts on each coordinate alone, so that the caller leaves the intercept and other
    coordinates unpenalised by passing ``w * mask``, with 0 in the mask where w is free; after
    ``prox``, which sends those to 0, it puts them back: ``where(mask, prox(w, step), w)``.

    A member refuses strengths that are negative or not finite with one InvalidCall.
    """

    @property
    @abstractmethod
    def l1(self) -> float:
        """Coefficient of ||w||_1: the part without a gradient at 0."""

    @property
    @abstractmethod
    def l2(self) -> float:
        """Coefficient of ||w||_2^2 / 2: the smooth part."""

    def value(self, w: Array) -> float:
        """Value of the whole penalty."""
        return float(self.l1 * np.abs(w).sum() + 0.5 * self.l2 * np.square(w).sum())

    def grad(self, w: Array) -> Array:
        """Gradient of the smooth part, l2 w; the part with l1 has none and is left out."""
        return self.l2 * w

    def prox(self, w: Array, step: float) -> Array:
        """Proximal operator: argmin over u of ``step * value(u) + ||u - w||^2 / 2``.

        The soft threshold at step l1, then a division by 1 + step l2.

        Source: Parikh and Boyd, Proximal Algorithms (2014), section 6.5.
        """
        # w - clip(w, -t, t) is sign(w) max(|w| - t, 0).
        threshold = step * self.l1
        return (w - np.clip(w, -threshold, threshold)) / (1.0 + step * self.l2)
