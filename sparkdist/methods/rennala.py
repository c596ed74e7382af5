"""Rennala SGD."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import rennala as _rennala
from sparkdist.methods._base import Method
from sparkdist.updaters import Updater, sgd

__all__ = ["rennala"]


def rennala(pushes: int = 16, updater: Updater = sgd(0.1)) -> Method:
    """SGD whose batch is the first ``pushes`` gradients at the parameters of now, whoever's.

    Source: Tyurin and Richtarik, Optimal Time Complexities of Parallel Stochastic Optimization
    Methods Under a Fixed Computation Model, arXiv:2305.12387.
    """
    return Method(workers.downpour(), _rennala(pushes), updater)
