"""Descent: what the server does with a mean gradient."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparkdist.blocks import Array
from sparkdist.errors import InvalidCall
from sparkdist.fields import not_negative, optional, positive, read_fields
from sparkdist.updaters._base import State, Updater
from sparkdist.updaters._damping import Damping, scale_at

__all__ = ["Descent"]


@dataclass(frozen=True, eq=False)
class Descent:
    """An updater with clipping and the penalty l1 ||w||_1 + (l2 / 2) ||w||_2^2.

    One update is, with h the updater's ``step_size``, one number or one a coordinate, and s the
    ``damping`` of the gradient's delay, 1 without one::

        g <- g min(1, clip / ||g||)
        g <- g + l2 w
        w <- w + s (the updater's, from g, - w)
        w <- sign(w) max(|w| - s h l1, 0)

    The gradient is clipped before the penalty is added: clipping is for the outliers of the
    data, and may not weaken the penalty just when the data pull w away.

    The L2 part goes into the gradient, also under adam (it is not AdamW's decay): only so is the
    minimum that of mean loss + penalty for every updater.  The same holds for the L1 part,
    because the threshold has, in each coordinate, the length of the updater's step.

    Parameters
    ----------
    updater
        A member of the family, ``adagrad(0.1)`` for instance.
    l1, l2
        Strengths of the penalty.
    mask
        1 where w is penalised and 0 where it is free, shape of w; None penalises everything.
    clip
        Largest Euclidean norm of a gradient; None lets all pass.
    damping
        The delay of a gradient, in versions, to a factor of the rate: ``delay_adaptive(8)``.

    Raises
    ------
    InvalidCall
        With all problems of the call.

    Source: Duchi and Singer, Efficient Online and Batch Learning Using Forward Backward
    Splitting, Journal of Machine Learning Research 10 (2009), equations (2) and (3), in the
    updater's metric; for the clipping, Pascanu, Mikolov and Bengio, arXiv:1211.5063, Algorithm 1.
    """

    updater: Updater
    l1: float = 0.0
    l2: float = 0.0
    mask: Any = None
    clip: float | None = None
    damping: Damping | None = None

    def __post_init__(self) -> None:
        problems = read_fields(
            self,
            l1=not_negative,
            l2=not_negative,
            mask=optional(_mask),
            clip=optional(positive),
            damping=optional(_damping),
        )
        if not isinstance(self.updater, Updater):
            rule = "updater must be a member of sparkdist.updaters, adagrad(0.1) for instance"
            problems.insert(0, f"{rule}; it is {self.updater!r}")
        elif not self.updater.takes_gradients and not self.l1 == self.l2 == 0:
            rule = "takes differences of parameters, to which the server cannot add a penalty"
            cure = "leave l1 and l2 at 0 here, and penalise where the workers step"
            problems.append(f"{self.updater!r} {rule}: {cure}")
        elif self.damping is not None and not self.updater.rate_scales_step:
            problems.append(f"{self.updater!r} cannot be damped: its step is not one of its rate")
        if problems:
            raise InvalidCall("Descent", problems)
        if self.mask is not None:
            object.__setattr__(self, "updater", self.updater.only_on(self.mask))

    def init(self, w: Array) -> State:
        """Return the updater's state before the first update.

        Raises
        ------
        InvalidCall
            If the mask does not fit w.
        """
        if self.mask is not None and self.mask.shape != w.shape:
            rule = f"mask must have the shape of the parameters, {w.shape}"
            raise InvalidCall("Descent", [f"{rule}; it has {self.mask.shape}"])
        return self.updater.init(w)

    def update(
        self,
        t: int,
        grad: Array,
        state: State,
        w: Array,
        new_w: Array,
        new_state: State,
        *,
        delay: int = 0,
        **since: Array,
    ) -> None:
        """Write the t-th update (t counts from 0) of w and state into new_w and new_state.

        Like ``Updater.update``, but ``grad`` is the caller's scratch: it is overwritten.  With
        ``l1`` a vector or two are allocated if the updater's step is a vector.  A gradient that
        is not finite is not clipped, so that the new w shows it.

        ``delay`` is how many versions old the gradient's parameters are; ``since`` is for an
        updater that remembers reads.
        """
        where: Any = True if self.mask is None else self.mask
        if self.clip is not None:
            _clip(grad, self.clip, new_w)
        if self.l2 > 0:
            np.multiply(w, self.l2, out=new_w)
            np.add(grad, new_w, out=grad, where=where)
        self.updater.update(t, grad, state, w, new_w, new_state, **since)
        if (scale := scale_at(self.damping, delay)) != 1.0:
            np.multiply(np.subtract(new_w, w, out=new_w), scale, out=new_w)
            np.add(w, new_w, out=new_w)
        if self.l1 > 0:
            threshold = scale * self.l1 * self.updater.step_size(t, new_state)
            # w - clip(w, -h, h) is sign(w) max(|w| - h, 0), and never -0.
            np.clip(new_w, -threshold, threshold, out=grad)
            np.subtract(new_w, grad, out=new_w, where=where)


def _clip(grad: Array, most: float, scratch: Array) -> None:
    """Scale grad to the norm ``most`` if it is longer; else leave every bit of it."""
    peak = float(max(grad.max(initial=0.0), -grad.min(initial=0.0)))
    if not 0 < peak < inf:
        return
    # Squares overflow from 1.3e154, in float32 from 1.8e19; those of grad / peak do not.
    np.divide(grad, peak, out=scratch)
    # Unlike the dot product, einsum can sum float32 in float64 without a copy.
    length = sqrt(np.einsum("i,i", scratch.ravel(), scratch.ravel(), dtype=np.float64))
    if peak * length > most:
        np.multiply(scratch, most / length, out=grad)


def _damping(value: Any) -> Damping:
    """Check a damping."""
    if isinstance(value, type) or not callable(value):
        raise ValueError(f"must be a function of a delay, delay_adaptive(8); it is {value!r}")
    return value


def _mask(value: object) -> NDArray[np.bool_]:
    """Check a mask, and return a copy of it as booleans."""
    try:
        mask = np.array(value)
    except ValueError:  # lists of unequal length
        mask = np.array(None)
    if mask.dtype.kind not in "fiub" or not np.isin(mask, (0, 1)).all():
        raise ValueError(f"must be an array of 0 and 1, or None; it is {reprlib.repr(value)}")
    mask = mask.astype(bool)
    mask.flags.writeable = False
    return mask
