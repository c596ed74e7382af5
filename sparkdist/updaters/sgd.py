"""Stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparkdist.blocks import Array
from sparkdist.fields import settle
from sparkdist.updaters._base import State, Updater
from sparkdist.updaters._check import rate_or_schedule
from sparkdist.updaters._rates import Rate, rate_at

__all__ = ["sgd"]


@dataclass(frozen=True)
class sgd(Updater):
    """Step against the gradient g.

    ::

        w <- w - rate g

    Source: Bottou, Curtis and Nocedal, Optimization Methods for Large-Scale Machine Learning,
    SIAM Review 60 (2018), Algorithm 4.1.
    """

    rate: Rate = 0.01

    def __post_init__(self) -> None:
        settle(self, rate=rate_or_schedule)

    def init(self, w: Array) -> State:
        """Nothing is remembered."""
        return ()

    def update(
        self, t: int, grad: Array, state: State, w: Array, new_w: Array, new_state: State
    ) -> None:
        """Write w - rate g into new_w."""
        np.multiply(grad, rate_at(self.rate, t), out=new_w)
        np.subtract(w, new_w, out=new_w)

    def step_size(self, t: int, state: State) -> float | Array:
        """Return the rate."""
        return rate_at(self.rate, t)
