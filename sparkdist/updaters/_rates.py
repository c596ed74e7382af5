"""Learning rates: a number, or a schedule, which is any function of the number of the update.

All schedules here are in units of updates of the server, which count from t = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, inf, pi
from typing import TypeAlias

from sparkdist.errors import InvalidCall
from sparkdist.fields import not_negative, plain, positive, settle, share, whole
from sparkdist.updaters._check import rate_or_schedule

__all__ = [
    "Rate",
    "Schedule",
    "constant",
    "cosine",
    "inverse_time",
    "linear_scaling",
    "rate_at",
    "step_decay",
    "warmup",
]

#: The number t of the update, from 0, to its learning rate: finite, 0 or more.
Schedule: TypeAlias = Callable[[int], float]
#: What an updater takes: one number above 0 for all updates, or a schedule.
Rate: TypeAlias = float | Schedule


def rate_at(rate: Rate, t: int) -> float:
    """Return the rate of update t, as Python's float.

    Raises
    ------
    InvalidCall
        If a schedule gives something else than a finite number of at least 0.
    """
    if not callable(rate):
        return rate
    given = rate(t)
    number = plain(given)
    if not 0 <= number < inf:
        name = getattr(rate, "__name__", type(rate).__name__)
        problem = f"the rate of update {t} must be a finite number >= 0; it is {given!r}"
        raise InvalidCall(name, [problem])
    return number


@dataclass(frozen=True)
class constant:
    """One rate for all updates: ``rate(t) = rate``.  A float does the same.

    Source: Bottou, Curtis and Nocedal, Optimization Methods for Large-Scale Machine Learning,
    SIAM Review 60 (2018), Theorem 4.6: it ends in a neighbourhood of the minimum.
    """

    rate: float

    def __post_init__(self) -> None:
        settle(self, rate=positive)

    def __call__(self, t: int) -> float:
        return self.rate


@dataclass(frozen=True)
class inverse_time:
    """``rate(t) = rate / (1 + decay t)``: it converges where gradients are noisy.

    Source: Bottou, Stochastic Gradient Descent Tricks (2012), where the decay is the rate
    times the strength of the L2 penalty; Robbins and Monro, Annals of Mathematical
    Statistics 22 (1951), for the conditions that it satisfies.
    """

    rate: float
    decay: float

    def __post_init__(self) -> None:
        settle(self, rate=positive, decay=not_negative)

    def __call__(self, t: int) -> float:
        return self.rate / (1.0 + self.decay * t)


@dataclass(frozen=True)
class step_decay:
    """``rate(t) = rate factor^floor(t / every)``: constant, then smaller all at once.

    Source: He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition,
    arXiv:1512.03385, section 3.4: a factor of 1/10, there whenever the error stops falling.
    """

    rate: float
    factor: float
    every: int

    def __post_init__(self) -> None:
        settle(self, rate=positive, factor=share, every=whole(1))

    def __call__(self, t: int) -> float:
        return self.rate * self.factor ** (t // self.every)


@dataclass(frozen=True)
class cosine:
    """Half a wave from ``rate`` at t = 0 to ``final`` at t = ``steps``, and ``final`` after it.

    ::

        rate(t) = final + (rate - final) (1 + cos(pi t / steps)) / 2

    Source: Loshchilov and Hutter, SGDR, arXiv:1608.03983, equation (5), without restarts.
    """

    rate: float
    steps: int
    final: float = 0.0

    def __post_init__(self) -> None:
        settle(self, rate=positive, steps=whole(1), final=not_negative)

    def __call__(self, t: int) -> float:
        if t >= self.steps:
            return self.final
        return self.final + (self.rate - self.final) * (1.0 + cos(pi * t / self.steps)) / 2.0


@dataclass(frozen=True)
class warmup:
    """Linear from ``start`` at t = 0 to the target's rate at t = ``steps``, then the target.

    ::

        rate(t) = start + (target(steps) - start) t / steps    if t < steps
                  target(t)                                    else

    The target counts its updates from 0 as well, not from the end of the warm-up, so that it
    is, from then on, what it would have been without one.

    Source: Goyal et al., Accurate, Large Minibatch SGD, arXiv:1706.02677, section 2.2, gradual
    warmup, which goes back to the original schedule where it ends.
    """

    target: Rate
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        settle(self, target=rate_or_schedule, steps=whole(0), start=not_negative)

    def __call__(self, t: int) -> float:
        if t >= self.steps:
            return rate_at(self.target, t)
        rise = rate_at(self.target, self.steps) - self.start
        return self.start + rise * t / self.steps


@dataclass(frozen=True)
class linear_scaling:
    """The rate of a batch that is k times as large: k times the rate, with gradual warm-up.

    ::

        rate(t) = rate (1 + (k - 1) t / warmup_steps)    if t < warmup_steps
                  rate k                                 else

    k workers whose gradients are averaged make a batch that is k times as large.  The rule
    breaks for a large k, which depends on the problem; the warm-up helps where ``k * rate`` is
    near the largest rate that is stable, and costs a little elsewhere.

    Source: Goyal et al., Accurate, Large Minibatch SGD, arXiv:1706.02677, sections 2.1 and 2.2,
    where the warm-up takes 5 epochs.
    """

    rate: float
    k: float
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        settle(self, rate=positive, k=positive, warmup_steps=whole(0))

    def __call__(self, t: int) -> float:
        return warmup(self.rate * self.k, self.warmup_steps, start=self.rate)(t)
