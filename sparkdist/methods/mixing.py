"""Iterative parameter mixing."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import bsp
from sparkdist.methods._base import Method
from sparkdist.updaters import Updater
from sparkdist.updaters import sgd as _sgd

__all__ = ["mixing"]


def mixing(inner: Updater = _sgd(0.1)) -> Method:
    """Iterative parameter mixing: each worker descends alone for an epoch, then all are averaged.

    Source: McDonald, Hall and Mann, Distributed Training Strategies for the Structured
    Perceptron, NAACL 2010, Figure 3, with a mixture by rows.
    """
    return Method(workers.local_sgd("epoch", inner), bsp(), _sgd(1.0))
