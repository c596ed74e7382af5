"""SVRG: steps alone, without the noise that the gradient over all rows takes away."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from sparkdist.blocks import Array
from sparkdist.client import Gradient
from sparkdist.consistency import bsp
from sparkdist.errors import InvalidCall
from sparkdist.fields import positive, settle
from sparkdist.updaters import sgd
from sparkdist.workers._base import Cuts, Units, UnitWorker, Whole, merged

__all__ = ["svrg"]


@dataclass(frozen=True)
class svrg(UnitWorker):
    """An epoch for the gradient over all rows, then an epoch of steps that use it, and so on.

    ::

        even epochs:  push the sum of gradients at w; the server steps to w - rate mu,
                      mu the mean gradient over all workers' rows
        odd epochs:   w~ <- the w before, mu <- (w~ - w) / rate, x <- w
                      each batch:  x <- x - rate (g(x) - g(w~) + mu)
                      push (w - x) / rate, so that the server steps to the mean of all x

    g is the mean gradient of a batch, with that of the penalty.  At the minimum every step is 0:
    a constant rate converges, linearly.  w~ is the worker's state, and goes with the push.  The
    server's updater is ``sgd(rate)``, with the same rate, and its policy ``bsp()``.

    Parameters
    ----------
    rate
        Step of a worker, and of the server.

    Source: Johnson and Zhang, Accelerating Stochastic Gradient Descent using Predictive Variance
    Reduction, NIPS 2013, procedure SVRG with option I; with an average at the end, Konecny et
    al., Federated Optimization, arXiv:1610.02527, Algorithm 3.
    """

    rate: float = 0.1
    #: Strength of the L2 penalty, and where it acts.
    penalty: tuple[float, Any] = field(default=(0.0, 1.0), repr=False)

    own_penalty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle(self, rate=positive)

    def part_of(self, whole: Whole) -> svrg:
        """Return the loop whose gradients are those of loss and penalty."""
        problems = []
        if (whole.consistency, whole.updater, whole.plain) != (bsp(), sgd(self.rate), True):
            rule = f"consistency must be bsp() and updater sgd({self.rate:g})"
            rule += ", without a codec or clipping"
            problems.append(f"{rule}; they are {whole.consistency!r} and {whole.updater!r}")
        if whole.l1:
            problems.append("the penalty must be smooth: L2, or none")
        if problems:
            raise InvalidCall("svrg", problems)
        return dataclasses.replace(self, penalty=(whole.l2, whole.mask))

    def cuts(self, per_epoch: int, epochs: int) -> Cuts:
        """Return units of an epoch each: every worker has as many as the others."""
        return Cuts(per_epoch, epochs, max(1, per_epoch))

    def state_size(self, size: int) -> int:
        """Return the size of w~, and one number more: the unit that it is from."""
        return size + 1

    def unit(self, units: Units, clock: int, w: Array, state: Array | None) -> Gradient:
        """Sum the gradients of an epoch, or use them for an epoch of steps."""
        if clock % 2 == 0:
            total = self._sum([self._at(units, clock, k, w) for k in range(units.steps(clock))])
            value = total.value.astype(w.dtype, copy=False)
            return total._replace(value=value, state=np.concatenate([[clock], w]))
        if state is None or state[0] != clock - 1:  # its sum over the rows was left out
            return Gradient(np.zeros_like(w), 0.0, state=state)
        anchor = state[1:].astype(w.dtype)
        mu, x, done = (anchor - w) / self.rate, w, []
        for step in range(units.steps(clock)):
            here, there = (self._at(units, clock, step, point) for point in (x, anchor))
            done.append(here)
            if here.weight > 0:
                x = x - self.rate * ((here.value - there.value) / here.weight + mu)
        total = self._sum(done)
        value = (total.weight * (w - x) / self.rate).astype(w.dtype, copy=False)
        return total._replace(value=value, state=state)

    def _at(self, units: Units, clock: int, step: int, w: Array) -> Gradient:
        """Sums over a batch, with the gradient of the penalty."""
        l2, mask = self.penalty
        gradient = units.gradient(clock, step, w)
        return gradient._replace(value=gradient.value + gradient.weight * l2 * mask * w)

    @staticmethod
    def _sum(parts: list[Gradient]) -> Gradient:
        return merged(np.sum([part.value for part in parts], axis=0), parts)
