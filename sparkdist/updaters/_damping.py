"""Dampings: how much shorter the step of an old gradient is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from sparkdist.errors import InvalidCall
from sparkdist.fields import plain, positive, settle

__all__ = ["Damping", "delay_adaptive", "scale_at"]

#: The age of a gradient's parameters, in versions, to a factor of its rate: from 0 to 1.
Damping: TypeAlias = Callable[[int], float]


def scale_at(damping: Damping | None, delay: int) -> float:
    """Return the factor of a rate, 1 without a damping.

    Raises
    ------
    InvalidCall
        If a damping gives something else than a number from 0 to 1.
    """
    if damping is None:
        return 1.0
    scale = plain(given := damping(delay))
    if not 0 <= scale <= 1:
        name = getattr(damping, "__name__", type(damping).__name__)
        problem = f"the factor of delay {delay} must be a number from 0 to 1; it is {given!r}"
        raise InvalidCall(name, [problem])
    return scale


@dataclass(frozen=True)
class delay_adaptive:
    """The whole rate up to a delay of ``bound``, and then less: ``min(1, bound / delay)``.

    With ``bound`` 1 it is the staleness-aware rate, rate / delay.  With the number of workers,
    which is one more than the mean delay, only those that are much slower than the others
    make shorter steps.

    Source: Zhang, Gupta, Lian and Liu, Staleness-aware Async-SGD for Distributed Deep Learning,
    arXiv:1511.05950; with a bound, Koloskova, Stich and Jaggi, Sharper Convergence Guarantees for
    Asynchronous SGD, arXiv:2206.08307, and Mishchenko, Bach, Even and Woodworth, arXiv:2206.07638.
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        settle(self, bound=positive)

    def __call__(self, delay: int) -> float:
        return min(1.0, self.bound / delay) if delay > 0 else 1.0
