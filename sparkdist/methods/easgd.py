"""Elastic averaging SGD."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import asp
from sparkdist.methods._base import Method
from sparkdist.updaters import Rate, average

__all__ = ["easgd"]


def easgd(alpha: float = 0.1, rate: Rate = 0.1, tau: int = 4, momentum: float = 0.0) -> Method:
    """Elastic averaging SGD: the server's parameters are the centre that holds the workers.

    With ``momentum``, EAMSGD.  ``alpha`` is best 0.9 divided by the number of workers.

    Source: Zhang, Choromanska and LeCun, NIPS 2015, Algorithms 1 and 2.
    """
    return Method(workers.elastic(alpha, rate, tau, momentum), asp(), average(1.0))
