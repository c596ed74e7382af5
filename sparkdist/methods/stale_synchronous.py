"""Stale synchronous parallel SGD."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import ssp
from sparkdist.methods._base import Method
from sparkdist.updaters import Updater
from sparkdist.updaters import sgd as _sgd

__all__ = ["stale_synchronous"]


def stale_synchronous(
    bound: int = 3, updater: Updater = _sgd(0.1), lease: float | None = None
) -> Method:
    """SGD whose fastest worker is at most ``bound`` clocks ahead of the slowest.

    A worker that was not heard of for ``lease`` seconds is not waited for, until it comes back;
    by default all are.

    Source: Ho et al., More Effective Distributed ML via a Stale Synchronous Parallel Parameter
    Server, NIPS 2013, section 2.
    """
    return Method(workers.downpour(), ssp(bound, lease), updater)
