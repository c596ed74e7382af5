"""Synchronous mini-batch SGD."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import bsp
from sparkdist.methods._base import Method
from sparkdist.updaters import Updater
from sparkdist.updaters import sgd as _sgd

__all__ = ["sgd"]


def sgd(n_push: int = 1, updater: Updater = _sgd(0.1)) -> Method:
    """Synchronous mini-batch SGD: one batch of each worker a round, one step a round.

    ::

        w <- w - rate (sum_k sum of gradients of worker k) / (sum_k their weights)

    With k workers and batches of b rows it is descent with batches of k b rows, exactly.  Linear
    scaling: with k times the batch, k times the rate, warmed up over the first epochs; see
    ``sparkdist.updaters.linear_scaling``.

    Source: Goyal et al., Accurate, Large Minibatch SGD, arXiv:1706.02677, section 2.
    """
    return Method(workers.downpour(n_push=n_push), bsp(), updater)
