"""One-shot averaging."""

from __future__ import annotations

from sparkdist import workers
from sparkdist.consistency import bsp
from sparkdist.errors import InvalidCall
from sparkdist.methods._base import Method
from sparkdist.updaters import Updater
from sparkdist.updaters import sgd as _sgd

__all__ = ["one_shot"]


def one_shot(inner: Updater = _sgd(0.1), combine: str = "parameters") -> Method:
    """Each worker descends alone over all epochs; the results are averaged once, by weight.

    With ``combine="predictions"`` the result's ``model`` has the parameters of all workers and
    averages what they predict: probabilities of classes where the loss gives them.  For
    predictions that are linear in the parameters that is the same.  ``x``, ``fun`` and ``jac``
    are those of the averaged parameters all the same.

    No communication, and no safe default: on small or unlike partitions, and without a penalty,
    the average can be far from the minimum of the whole.

    Source: Zinkevich et al., Parallelized Stochastic Gradient Descent, NIPS 2010, Algorithm 3.
    """
    if combine not in ("parameters", "predictions"):
        problem = f"combine must be 'parameters' or 'predictions'; it is {combine!r}"
        raise InvalidCall("one_shot", [problem])
    ensemble = combine == "predictions"
    return Method(workers.local_sgd("all", inner, ensemble=ensemble), bsp(), _sgd(1.0))
