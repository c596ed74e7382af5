"""Gradient descent with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from math import pow
from typing import NamedTuple

import numpy as np

from sparkdist.blocks import Array
from sparkdist.fields import below_1, settle
from sparkdist.updaters._base import State, Updater
from sparkdist.updaters._check import rate_or_schedule
from sparkdist.updaters._rates import Rate, rate_at

__all__ = ["momentum"]


class MomentumState(NamedTuple):
    """What momentum remembers."""

    velocity: Array  # (d,), the gradients up to now, each weighted by momentum^age


@dataclass(frozen=True)
class momentum(Updater):
    """Step against a fading sum v of the gradients.

    ::

        v <- momentum v + g
        w <- w - rate v

    The rate stands outside the sum, so that a change of the rate acts on all of v at once and
    needs no correction; where v holds rate * g it does: Goyal et al., arXiv:1706.02677, section
    3, remark 2.  The long-run step is rate / (1 - momentum).

    P workers that push without waiting for one another act like a momentum of 1 - 1 / P by
    themselves (Mitliagkas et al., arXiv:1605.09774): there, set less of it here.

    Source: Polyak, Some Methods of Speeding up the Convergence of Iteration Methods, USSR
    Computational Mathematics 4 (1964); in this form, Goyal et al., equation (9).
    """

    rate: Rate = 0.01
    momentum: float = 0.9

    def __post_init__(self) -> None:
        settle(self, rate=rate_or_schedule, momentum=below_1)

    def init(self, w: Array) -> State:
        """At rest."""
        return MomentumState(np.zeros_like(w))

    def update(
        self, t: int, grad: Array, state: State, w: Array, new_w: Array, new_state: State
    ) -> None:
        """Write the sum into the state, and w - rate v into new_w."""
        (v,), (new_v,) = state, new_state
        np.multiply(v, self.momentum, out=new_v)
        np.add(new_v, grad, out=new_v)
        np.multiply(new_v, rate_at(self.rate, t), out=new_w)
        np.subtract(w, new_w, out=new_w)

    def step_size(self, t: int, state: State) -> float | Array:
        """Return the rate times the weight of the t + 1 gradients in v."""
        weight = (1.0 - pow(self.momentum, t + 1)) / (1.0 - self.momentum)
        return rate_at(self.rate, t) * weight
