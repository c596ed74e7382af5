"""AdaptiveRevision: Adagrad that knows how old a gradient is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sparkdist.blocks import Array
from sparkdist.fields import settle
from sparkdist.updaters._base import State, Updater
from sparkdist.updaters._check import divisor, rate_or_schedule
from sparkdist.updaters._rates import Rate, rate_at

__all__ = ["adaptive_revision"]


class AdaptiveRevisionState(NamedTuple):
    """What adaptive_revision remembers."""

    gbar: Array  # (d,), sum of the gradients; float64, because differences of it are what counts
    z: Array  # (d,), initial + the sum of g^2 + 2 g g_bck; it may fall
    z_max: Array  # (d,), the largest z up to now


@dataclass(frozen=True)
class adaptive_revision(Updater):
    """Count the gradients that were applied since a gradient's parameters were read.

    ``since`` is gbar as it was at that read, and g_bck the sum of what was applied meanwhile::

        g_bck <- gbar - since
        z     <- z + g^2 + 2 g g_bck,       from z = z_max = initial
        h     <- rate / sqrt(z_max)         the old step size
        z_max <- max(z, z_max)
        h'    <- rate / sqrt(z_max)         the new one
        w     <- w - h' g + (h - h') g_bck
        gbar  <- gbar + g

    Gradients that were computed on the same parameters and agree make z grow like the square of
    their sum, not the sum of their squares; the last term of w makes the steps of those in g_bck
    as short as if that had been known.  Without delay it is adagrad(rate, initial), bit for bit.

    It needs each push to be the gradient at parameters that were read once, at ``base``.  With a
    schedule, the revision is made at the rate of now.

    Source: McMahan and Streeter, Delay-Tolerant Algorithms for Asynchronous Distributed Online
    Learning, NIPS 2014.
    """

    rate: Rate = 0.1
    initial: float = 1.0

    remembers_reads = True
    rate_scales_step = False

    def __post_init__(self) -> None:
        settle(self, rate=rate_or_schedule, initial=divisor)

    def init(self, w: Array) -> State:
        """No gradient yet."""
        start = np.full_like(w, self.initial)
        return AdaptiveRevisionState(np.zeros(w.shape), start, start.copy())

    def on_read(self, state: State) -> Array:
        """Return a copy of gbar."""
        return state[0].copy()

    def update(
        self,
        t: int,
        grad: Array,
        state: State,
        w: Array,
        new_w: Array,
        new_state: State,
        since: Array | None = None,
    ) -> None:
        """Write sums, z and z_max into the state, and the step with its revision into new_w."""
        (gbar, z, z_max), (new_gbar, new_z, new_z_max) = state, new_state
        g_bck, root = new_gbar, new_z_max  # until they are needed for what they are named for
        np.subtract(gbar, gbar if since is None else since, out=g_bck)
        np.multiply(g_bck, 2.0, out=new_w)
        np.add(new_w, grad, out=new_w)
        np.multiply(new_w, grad, out=new_w)
        np.add(z, new_w, out=new_z)
        np.sqrt(np.maximum(new_z, z_max, out=root), out=root)
        # (1 / old - 1 / root) g_bck as g_bck / old (root - old) / root: 0 where z_max stays.
        old = np.sqrt(z_max, out=new_w)
        np.divide(g_bck, old, out=g_bck)
        np.multiply(g_bck, np.subtract(root, old, out=new_w), out=g_bck)
        np.divide(g_bck, root, out=g_bck)
        np.divide(grad, root, out=new_w)
        np.subtract(new_w, g_bck, out=new_w)
        np.multiply(new_w, rate_at(self.rate, t), out=new_w)
        np.subtract(w, new_w, out=new_w)
        np.maximum(new_z, z_max, out=new_z_max)
        np.add(gbar, grad, out=new_gbar)

    def step_size(self, t: int, state: State) -> float | Array:
        """Return rate / sqrt(z_max)."""
        step = np.sqrt(state[2])
        return np.divide(rate_at(self.rate, t), step, out=step)
