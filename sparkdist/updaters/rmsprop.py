"""RMSProp: Adagrad that forgets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparkdist.blocks import Array
from sparkdist.fields import below_1, settle
from sparkdist.updaters._base import State, Updater
from sparkdist.updaters._check import divisor, rate_or_schedule
from sparkdist.updaters._rates import Rate, rate_at

__all__ = ["rmsprop"]


class RmspropState(NamedTuple):
    """What rmsprop remembers."""

    mean_sq: Array  # (d,), moving average of the squared gradients, from 0


@dataclass(frozen=True)
class rmsprop(Updater):
    """Divide by the root of a moving average of the squared gradients.

    ::

        s <- decay s + (1 - decay) g^2,  from s = 0
        w <- w - rate g / (sqrt(s) + epsilon)

    A first step has the length rate / sqrt(1 - decay), 3.2 times the rate, whatever the gradient;
    later ones have about the rate.  So it does not come to rest unless the rate falls.

    Source: Tieleman and Hinton, Lecture 6.5, Neural Networks for Machine Learning, Coursera
    (2012), which has no epsilon; it stands outside the root, as in PyTorch.
    """

    rate: Rate = 1e-3
    decay: float = 0.9
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        settle(self, rate=rate_or_schedule, decay=below_1, epsilon=divisor)

    def init(self, w: Array) -> State:
        """No gradient yet."""
        return RmspropState(np.zeros_like(w))

    def update(
        self, t: int, grad: Array, state: State, w: Array, new_w: Array, new_state: State
    ) -> None:
        """Write the average into the state, and w - rate g / (sqrt(s) + epsilon) into new_w."""
        (s,), (new_s,) = state, new_state
        np.multiply(grad, grad, out=new_w)
        np.multiply(new_w, 1.0 - self.decay, out=new_w)
        np.multiply(s, self.decay, out=new_s)
        np.add(new_s, new_w, out=new_s)
        np.sqrt(new_s, out=new_w)
        np.add(new_w, self.epsilon, out=new_w)
        np.divide(grad, new_w, out=new_w)
        np.multiply(new_w, rate_at(self.rate, t), out=new_w)
        np.subtract(w, new_w, out=new_w)

    def step_size(self, t: int, state: State) -> float | Array:
        """Return rate / (sqrt(s) + epsilon)."""
        (s,) = state
        step = np.sqrt(s)
        np.add(step, self.epsilon, out=step)
        return np.divide(rate_at(self.rate, t), step, out=step)
