"""Ringmaster ASGD."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import ringmaster as _ringmaster
from sparkdist.methods._base import Method
from sparkdist.updaters import Updater, sgd

__all__ = ["ringmaster"]


def ringmaster(bound: int = 16, updater: Updater = sgd(0.1)) -> Method:
    """Asynchronous SGD that leaves out gradients which are ``bound`` versions old, or more.

    Source: Maranjyan, Tyurin and Richtarik, Ringmaster ASGD, arXiv:2501.16168, Algorithm 4.
    """
    return Method(workers.downpour(), _ringmaster(bound), updater)
