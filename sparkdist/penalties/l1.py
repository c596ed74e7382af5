"""Lasso penalty."""

from __future__ import annotations

from dataclasses import dataclass

from sparkdist.fields import not_negative, settle
from sparkdist.penalties._base import Penalty

__all__ = ["L1"]


@dataclass(frozen=True)
class L1(Penalty):
    """Sum of absolute values: strength ||w||_1.  It sets coordinates to exactly 0.

    Source: Tibshirani, Regression Shrinkage and Selection via the Lasso, Journal of the Royal
    Statistical Society B 58 (1996).
    """

    strength: float = 1e-3

    def __post_init__(self) -> None:
        settle(self, strength=not_negative)

    @property
    def l1(self) -> float:
        """The strength."""
        return self.strength

    @property
    def l2(self) -> float:
        """Zero: there is no smooth part."""
        return 0.0
