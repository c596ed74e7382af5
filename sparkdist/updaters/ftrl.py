"""FTRL-Proximal: online learning with exact zeros."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sparkdist.blocks import Array
from sparkdist.fields import not_negative, positive, settle
from sparkdist.updaters._base import State, Updater
from sparkdist.updaters._check import divisor

__all__ = ["ftrl"]


class FtrlState(NamedTuple):
    """What ftrl remembers."""

    z: Array  # (d,), the sum of g - sigma w
    n: Array  # (d,), the sum of the squared gradients


@dataclass(frozen=True)
class ftrl(Updater):
    """Follow the regularised leader: w minimises all gradients up to now, as linear functions.

    ::

        sigma <- (sqrt(n + g^2) - sqrt(n)) / rate
        z <- z + g - sigma w,               from z for which w is the first w
        n <- n + g^2,                       from n = 0
        w <- (clip(z, -l1, l1) - z) / ((beta + sqrt(n)) / rate + l2)

    which is the minimum of g_1 w + ... + g_t w + sum_s sigma_s (w - w_s)^2 / 2 + l1 |w| +
    (beta / rate + l2) w^2 / 2, where w started from 0.  With l1 = l2 = 0 it is descent with the
    step rate / (beta + sqrt(n)) in each coordinate.  A coordinate whose |z| stays below l1 is
    exactly 0, and one whose gradient is 0 does not move.

    ``l1`` and ``l2`` belong to the sum over all updates, so that they matter less the longer a run
    takes; a penalty of the model server, beside them, belongs to each gradient.  Neither touches
    what is not penalised, the intercept for instance.

    A push counts as one gradient, the mean of its batch: batches of 1 are the paper's algorithm.

    Source: McMahan et al., Ad Click Prediction: a View from the Trenches, KDD 2013, Algorithm 1,
    where rate is alpha.
    """

    rate: float = 0.1
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0
    #: True where w is penalised; see :meth:`only_on`.
    mask: Any = dataclasses.field(default=True, repr=False, compare=False)

    rate_scales_step = False

    def __post_init__(self) -> None:
        settle(self, rate=positive, beta=divisor, l1=not_negative, l2=not_negative)

    @property
    def penalises(self) -> bool:
        """Whether l1 or l2 is not 0."""
        return self.l1 > 0 or self.l2 > 0

    def only_on(self, mask: Array) -> Updater:
        """Return the rule whose l1 and l2 act where the mask is true, shape of w."""
        return dataclasses.replace(self, mask=mask)

    def init(self, w: Array) -> State:
        """No gradient yet, and the z from which w comes."""
        l1, l2 = (np.multiply(self.mask, each, dtype=w.dtype) for each in (self.l1, self.l2))
        return FtrlState(-(self.beta / self.rate + l2) * w - l1 * np.sign(w), np.zeros_like(w))

    def update(
        self, t: int, grad: Array, state: State, w: Array, new_w: Array, new_state: State
    ) -> None:
        """Write z and n into the state, and the w that follows from them into new_w."""
        (z, n), (new_z, new_n) = state, new_state
        np.multiply(grad, grad, out=new_n)
        root = np.sqrt(np.add(n, new_n, out=new_n), out=new_n)
        np.subtract(root, np.sqrt(n, out=new_z), out=new_z)
        np.multiply(new_z, w, out=new_z)
        np.divide(new_z, self.rate, out=new_z)
        np.subtract(grad, new_z, out=new_z)
        np.add(z, new_z, out=new_z)
        self._curvature(root, new_w)
        near = np.clip(new_z, -self.l1, self.l1, out=new_n)
        if self.mask is not True:
            np.multiply(near, self.mask, out=near)
        np.divide(np.subtract(near, new_z, out=near), new_w, out=new_w)
        np.add(n, np.multiply(grad, grad, out=new_n), out=new_n)

    def step_size(self, t: int, state: State) -> float | Array:
        """Return (t + 1) / ((beta + sqrt(n)) / rate + l2): w is made of all t + 1 gradients."""
        step = np.sqrt(state[1])
        self._curvature(step, step)
        return np.divide(t + 1.0, step, out=step)

    def _curvature(self, root: Array, out: Array) -> None:
        """Write (beta + root) / rate + l2."""
        np.divide(np.add(root, self.beta, out=out), self.rate, out=out)
        np.add(out, self.l2, out=out, where=self.mask)
