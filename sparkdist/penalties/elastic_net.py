"""Elastic net penalty."""

from __future__ import annotations

from dataclasses import dataclass

from sparkdist.fields import not_negative, settle
from sparkdist.penalties._base import Penalty

__all__ = ["ElasticNet"]


@dataclass(frozen=True)
class ElasticNet(Penalty):
    """Lasso and ridge together: l1 ||w||_1 + (l2 / 2) ||w||_2^2.

    MLlib's ``regParam`` r and ``elasticNetParam`` a are l1 = r a and l2 = r (1 - a).

    Source: Zou and Hastie, Regularization and Variable Selection via the Elastic Net, Journal
    of the Royal Statistical Society B 67 (2005), whose lambda_2 is half of l2.
    """

    l1: float = 1e-3
    l2: float = 1e-3

    def __post_init__(self) -> None:
        settle(self, l1=not_negative, l2=not_negative)
