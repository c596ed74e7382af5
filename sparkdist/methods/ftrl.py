"""FTRL-Proximal."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import asp
from sparkdist.methods._base import Method
from sparkdist.updaters import ftrl as _ftrl

__all__ = ["ftrl"]


def ftrl(rate: float = 0.1, beta: float = 1.0, l1: float = 0.0, l2: float = 0.0) -> Method:
    """Asynchronous FTRL-Proximal: one pass over many sparse rows, and exact zeros.

    Source: McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013, Algorithm 1.
    """
    return Method(workers.downpour(), asp(), _ftrl(rate, beta, l1, l2))
