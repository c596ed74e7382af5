"""Averaging of models."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparkdist.blocks import Array
from sparkdist.fields import settle
from sparkdist.updaters._base import State, Updater
from sparkdist.updaters._check import rate_or_schedule
from sparkdist.updaters._rates import Rate, rate_at

__all__ = ["average"]


@dataclass(frozen=True)
class average(Updater):
    """Add the mean of what the workers added to the parameters: pushes are differences.

    ::

        w <- w + rate mean_k(w_k - w)

    Each worker k starts from w, makes steps of its own to w_k, and pushes w_k - w.  With rate 1
    the new w is the mean of the w_k.  What is pushed is no gradient: a penalty has its place in
    the workers' own steps.

    Source: McDonald, Hall and Mann, Distributed Training Strategies for the Structured
    Perceptron, NAACL 2010, Figure 3, iterative parameter mixing; the rate, Reddi et al.,
    Adaptive Federated Optimization, arXiv:2003.00295, Algorithm 1.
    """

    rate: Rate = 1.0

    takes_gradients = False

    def __post_init__(self) -> None:
        settle(self, rate=rate_or_schedule)

    def init(self, w: Array) -> State:
        """Nothing is remembered."""
        return ()

    def update(
        self, t: int, grad: Array, state: State, w: Array, new_w: Array, new_state: State
    ) -> None:
        """Write w + rate times the mean difference, which is ``grad``, into new_w."""
        np.multiply(grad, rate_at(self.rate, t), out=new_w)
        np.add(w, new_w, out=new_w)

    def step_size(self, t: int, state: State) -> float | Array:
        """Return the rate, which is in units of the difference."""
        return rate_at(self.rate, t)
