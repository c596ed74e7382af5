"""Distributed stochastic variance reduced gradient."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import bsp
from sparkdist.methods._base import Method
from sparkdist.updaters import sgd

__all__ = ["svrg"]


def svrg(rate: float = 0.1) -> Method:
    """SVRG: an epoch for the gradient over all rows, an epoch of steps that use it, and so on.

    Source: Johnson and Zhang, Accelerating Stochastic Gradient Descent using Predictive Variance
    Reduction, NIPS 2013; with an average at the end, Konecny et al., arXiv:1610.02527,
    Algorithm 3.
    """
    return Method(workers.svrg(rate), bsp(), sgd(rate))
