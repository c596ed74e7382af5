"""CoCoA+."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import bsp
from sparkdist.methods._base import Method
from sparkdist.updaters import sgd

__all__ = ["cocoa"]


def cocoa(rounds: int = 1, gamma: float = 1.0) -> Method:
    """CoCoA+: the dual of the support vector machine, each worker at its own rows' variables.

    ``rounds`` an epoch; ``gamma = 1`` adds what the K workers found, ``gamma = 1 / K`` is the
    first CoCoA, which averages.

    Source: Ma et al., Adding vs. Averaging in Distributed Primal-Dual Optimization, ICML 2015,
    arXiv:1502.03508, Algorithm 1.
    """
    return Method(workers.cocoa(rounds, gamma), bsp(), sgd(1.0))
