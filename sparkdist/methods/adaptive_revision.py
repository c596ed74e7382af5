"""Delay-tolerant Adagrad."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import asp
from sparkdist.methods._base import Method
from sparkdist.updaters import Rate
from sparkdist.updaters import adaptive_revision as _adaptive_revision

__all__ = ["adaptive_revision"]


def adaptive_revision(rate: Rate = 0.1, initial: float = 1.0) -> Method:
    """Asynchronous Adagrad that revises its steps by the delay of each gradient.

    For long delays: a rate that was tuned without any stays right.  The server keeps about two
    vectors of float64 a worker for it.

    Source: McMahan and Streeter, Delay-Tolerant Algorithms for Asynchronous Distributed Online
    Learning, NIPS 2014.
    """
    return Method(workers.downpour(), asp(), _adaptive_revision(rate, initial))
