"""Ridge penalty."""

from __future__ import annotations

from dataclasses import dataclass

from sparkdist.fields import not_negative, settle
from sparkdist.penalties._base import Penalty

__all__ = ["L2"]


@dataclass(frozen=True)
class L2(Penalty):
    """Half the squared Euclidean norm: (strength / 2) ||w||_2^2.

    Source: Hastie, Tibshirani and Friedman, The Elements of Statistical Learning, 2nd ed.,
    equation (3.41); the 1/2 makes the gradient strength * w.
    """

    strength: float = 1e-3

    def __post_init__(self) -> None:
        settle(self, strength=not_negative)

    @property
    def l1(self) -> float:
        """Zero: the penalty is smooth."""
        return 0.0

    @property
    def l2(self) -> float:
        """The strength."""
        return self.strength
