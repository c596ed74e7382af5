"""Gradient descent with Nesterov's momentum."""

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

__all__ = ["nesterov"]


class NesterovState(NamedTuple):
    """What nesterov remembers."""

    velocity: Array  # (d,), the gradients up to now, each weighted by momentum^age


@dataclass(frozen=True)
class nesterov(Updater):
    """Step against the fading sum v as it would be after one more g.

    ::

        v <- momentum v + g
        w <- w - rate (momentum v + g)

    w is the point that looks ahead: where Nesterov's method takes its gradient.  As in momentum,
    a change of the rate needs no correction, and the long-run step is rate / (1 - momentum).

    With ``nesterov(0.7, 0.9)``, and pushes that carry the parameters before minus after many
    local steps, this is the outer step of DiLoCo (Douillard et al., arXiv:2311.08105).

    Source: Sutskever, Martens, Dahl and Hinton, On the importance of initialization and momentum
    in deep learning, ICML 2013, equations (3) and (4), in the variable of Bengio,
    Boulanger-Lewandowski and Pascanu, arXiv:1212.0901, section 3.5.
    """

    rate: Rate = 0.01
    momentum: float = 0.9

    def __post_init__(self) -> None:
        settle(self, rate=rate_or_schedule, momentum=below_1)

    def init(self, w: Array) -> State:
        """At rest."""
        return NesterovState(np.zeros_like(w))

    def update(
        self, t: int, grad: Array, state: State, w: Array, new_w: Array, new_state: State
    ) -> None:
        """Write the sum into the state, and w - rate (momentum v + g) into new_w."""
        (v,), (new_v,) = state, new_state
        np.multiply(v, self.momentum, out=new_v)
        np.add(new_v, grad, out=new_v)
        np.multiply(new_v, self.momentum, out=new_w)
        np.add(new_w, grad, out=new_w)
        np.multiply(new_w, rate_at(self.rate, t), out=new_w)
        np.subtract(w, new_w, out=new_w)

    def step_size(self, t: int, state: State) -> float | Array:
        """Return the rate times the weight of the t + 1 gradients in momentum v + g."""
        weight = (1.0 - pow(self.momentum, t + 2)) / (1.0 - self.momentum)
        return rate_at(self.rate, t) * weight
