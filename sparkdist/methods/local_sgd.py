"""Local SGD, and post-local SGD."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import bsp
from sparkdist.methods._base import Method
from sparkdist.updaters import Updater
from sparkdist.updaters import sgd as _sgd

__all__ = ["local_sgd"]


def local_sgd(steps: int = 16, inner: Updater = _sgd(0.1), warm: int = 0) -> Method:
    """Local SGD: ``steps`` batches alone, then the average of the workers' parameters.

    The first ``warm`` averages come after one batch each: post-local SGD.

    Source: Stich, arXiv:1805.09767, Algorithm 1; ``warm``, Lin et al., arXiv:1808.07217,
    section 3.
    """
    return Method(workers.local_sgd(steps, inner, warm), bsp(), _sgd(1.0))
