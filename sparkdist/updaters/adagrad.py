"""Adagrad: a rate for each coordinate, which falls with its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparkdist.blocks import Array
from sparkdist.fields import settle
from sparkdist.updaters._base import State, Updater
from sparkdist.updaters._check import divisor, rate_or_schedule
from sparkdist.updaters._rates import Rate, rate_at

__all__ = ["adagrad"]


class AdagradState(NamedTuple):
    """What adagrad remembers."""

    sum_sq: Array  # (d,), initial + the sum of the squared gradients up to now


@dataclass(frozen=True)
class adagrad(Updater):
    """Divide by the root of the sum of the squared gradients, this one included.

    ::

        s <- s + g^2,  from s = initial
        w <- w - rate g / sqrt(s)

    With ``initial`` 0 the first step would be rate sign(g) in every coordinate, however small
    its gradient, and 0 / 0 where there is none: so it is above 0, and takes the place of the
    epsilon that others add to the root.  A gradient much smaller than sqrt(initial), 0.3, at
    first gets a step of rate g / sqrt(initial).

    A push that carries the sum of several gradients counts as the square of the sum, which is
    more cautious than the sum of their squares where they agree.

    Source: Duchi, Hazan and Singer, Adaptive Subgradient Methods, Journal of Machine Learning
    Research 12 (2011), Figure 1, diagonal, with initial inside the root; on a server, Dean et
    al., Large Scale Distributed Deep Networks, NIPS 2012, section 4.1.
    """

    rate: Rate = 0.1
    initial: float = 0.1

    def __post_init__(self) -> None:
        settle(self, rate=rate_or_schedule, initial=divisor)

    def init(self, w: Array) -> State:
        """No gradient yet."""
        return AdagradState(np.full_like(w, self.initial))

    def update(
        self, t: int, grad: Array, state: State, w: Array, new_w: Array, new_state: State
    ) -> None:
        """Write the sum into the state, and w - rate g / sqrt(s) into new_w."""
        (s,), (new_s,) = state, new_state
        np.multiply(grad, grad, out=new_s)
        np.add(s, new_s, out=new_s)
        np.sqrt(new_s, out=new_w)
        np.divide(grad, new_w, out=new_w)
        np.multiply(new_w, rate_at(self.rate, t), out=new_w)
        np.subtract(w, new_w, out=new_w)

    def step_size(self, t: int, state: State) -> float | Array:
        """Return rate / sqrt(s)."""
        (s,) = state
        step = np.sqrt(s)
        return np.divide(rate_at(self.rate, t), step, out=step)
