"""DiLoCo."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import bsp
from sparkdist.methods._base import Method
from sparkdist.updaters import Updater, adam, nesterov

__all__ = ["diloco"]


def diloco(
    steps: int = 500, inner: Updater = adam(1e-3), outer: Updater = nesterov(0.7, 0.9)
) -> Method:
    """Local SGD with Adam inside and a Nesterov step on the server.

    The constants are those of long runs of language models; on short problems tune them: a
    plain average may do better.  The paper's inner optimiser is AdamW; here a penalty goes into
    the gradient.

    Source: Douillard et al., DiLoCo, arXiv:2311.08105, Algorithm 1 and section 3.
    """
    return Method(workers.local_sgd(steps, inner), bsp(), outer)
