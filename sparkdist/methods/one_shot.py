"""One-shot averaging."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import bsp
from sparkdist.methods._base import Method
from sparkdist.updaters import Updater
from sparkdist.updaters import sgd as _sgd

__all__ = ["one_shot"]


def one_shot(inner: Updater = _sgd(0.1)) -> Method:
    """Each worker descends alone over all epochs; the results are averaged once, by weight.

    No communication, and no safe default: on small or unlike partitions, and without a penalty,
    the average can be far from the minimum of the whole.

    Source: Zinkevich et al., Parallelized Stochastic Gradient Descent, NIPS 2010, Algorithm 3.
    """
    return Method(workers.local_sgd("all", inner), bsp(), _sgd(1.0))
