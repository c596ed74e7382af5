"""Adam: moving averages of the gradient and of its square."""

from __future__ import annotations

from dataclasses import dataclass
from math import pow
from typing import NamedTuple

import numpy as np

from sparkdist.blocks import Array
from sparkdist.fields import below_1, settle
from sparkdist.updaters._base import State, Updater
from sparkdist.updaters._check import divisor, rate_or_schedule
from sparkdist.updaters._rates import Rate, rate_at

__all__ = ["adam"]


class AdamState(NamedTuple):
    """What adam remembers."""

    mean: Array  # (d,), moving average of the gradients, from 0
    mean_sq: Array  # (d,), moving average of the squared gradients, from 0


@dataclass(frozen=True)
class adam(Updater):
    """Divide a moving average of the gradients by the root of that of their squares.

    With T = t + 1, the number of updates with this one::

        m <- beta1 m + (1 - beta1) g
        v <- beta2 v + (1 - beta2) g^2
        w <- w - rate (m / (1 - beta1^T)) / (sqrt(v / (1 - beta2^T)) + epsilon)

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization, arXiv:1412.6980,
    Algorithm 1, whose t is T.
    """

    rate: Rate = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        settle(self, rate=rate_or_schedule, beta1=below_1, beta2=below_1, epsilon=divisor)

    def init(self, w: Array) -> State:
        """No gradient yet."""
        return AdamState(np.zeros_like(w), np.zeros_like(w))

    def update(
        self, t: int, grad: Array, state: State, w: Array, new_w: Array, new_state: State
    ) -> None:
        """Write the averages into the state, and w minus the step into new_w."""
        (m, v), (new_m, new_v) = state, new_state
        np.multiply(grad, 1.0 - self.beta1, out=new_w)
        np.multiply(m, self.beta1, out=new_m)
        np.add(new_m, new_w, out=new_m)
        np.multiply(grad, grad, out=new_w)
        np.multiply(new_w, 1.0 - self.beta2, out=new_w)
        np.multiply(v, self.beta2, out=new_v)
        np.add(new_v, new_w, out=new_v)
        self._root(t, new_v, new_w)
        np.divide(new_m, new_w, out=new_w)
        rate = rate_at(self.rate, t) / (1.0 - pow(self.beta1, t + 1))
        np.multiply(new_w, rate, out=new_w)
        np.subtract(w, new_w, out=new_w)

    def step_size(self, t: int, state: State) -> float | Array:
        """Return rate / (sqrt(v / (1 - beta2^T)) + epsilon): the corrected m is an average."""
        _, v = state
        step = np.empty_like(v)
        self._root(t, v, step)
        return np.divide(rate_at(self.rate, t), step, out=step)

    def _root(self, t: int, v: Array, out: Array) -> None:
        """Write what the step is divided by into out."""
        np.divide(v, 1.0 - pow(self.beta2, t + 1), out=out)
        np.sqrt(out, out=out)
        np.add(out, self.epsilon, out=out)
