"""Downpour SGD."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import asp
from sparkdist.methods._base import Method
from sparkdist.updaters import Updater, adagrad

__all__ = ["downpour"]


def downpour(
    n_fetch: int = 1, n_push: int = 1, local_rate: float = 0.0, updater: Updater = adagrad(0.1)
) -> Method:
    """Downpour SGD: nobody waits for anybody, and the server gives each coordinate its rate.

    Source: Dean et al., Large Scale Distributed Deep Networks, NIPS 2012, section 4.1.
    """
    return Method(workers.downpour(n_fetch, n_push, local_rate), asp(), updater)
