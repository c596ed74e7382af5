"""Synchronous SGD with backup workers."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import backup
from sparkdist.methods._base import Method
from sparkdist.updaters import Updater
from sparkdist.updaters import sgd as _sgd

__all__ = ["backup_workers"]


def backup_workers(extra: int = 1, updater: Updater = _sgd(0.1)) -> Method:
    """Synchronous SGD that does not wait for its ``extra`` slowest workers: N of N + b.

    The rate belongs to the N whose gradients are averaged.  A worker that is always slow is
    never heard: look at ``counts["dropped"]``.

    Source: Chen et al., Revisiting Distributed Synchronous SGD, arXiv:1604.00981, section 3.
    """
    return Method(workers.downpour(), backup(extra), updater)
