"""Local SGD: steps on the worker, and averages on the server."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from sparkdist.blocks import Array
from sparkdist.client import Gradient
from sparkdist.errors import InvalidCall
from sparkdist.fields import flag, settle, whole
from sparkdist.objectives import Objective
from sparkdist.updaters import Descent, State, Updater, sgd
from sparkdist.workers._base import Cuts, Units, UnitWorker, Whole

__all__ = ["local_sgd"]


@dataclass(frozen=True)
class local_sgd(UnitWorker):
    """Make some steps alone, then push how far they went: the pseudo-gradient.

    ::

        w_k <- w, the server's
        H times:  w_k <- inner(w_k, mean gradient of the next batch)
        push      sum of the batches' weights times (w - w_k)

    The server's mean over the workers of a round is w - mean_k(w_k), weighted by rows: descent
    by ``sgd(1.0)`` makes the average of the workers' models of it, ``nesterov(0.7, 0.9)`` is the
    outer step of DiLoCo.  What the inner updater remembers stays with the worker, is never
    averaged, and is kept with the ledger; its learning-rate schedule counts batches.

    Parameters
    ----------
    steps
        H, batches between two pushes; ``"epoch"`` for those of an epoch, ``"all"`` for those of
        all epochs, which are averaged once.
    inner
        The workers' own descent: a member of :mod:`sparkdist.updaters`.
    warm
        So many first pushes are of one batch each: post-local SGD.
    ensemble
        With ``"all"``: each worker's own model is kept, and the result's model averages their
        predictions.

    Source: Stich, Local SGD Converges Fast and Communicates Little, arXiv:1805.09767, Algorithm
    1; ``warm``, Lin et al., Don't Use Large Mini-Batches, Use Local SGD, arXiv:1808.07217,
    section 3; the inner updater's own state, Douillard et al., DiLoCo, arXiv:2311.08105,
    Algorithm 1; ``"all"``, Zinkevich et al., Parallelized Stochastic Gradient Descent, NIPS 2010,
    Algorithm 3; ``"epoch"``, McDonald, Hall and Mann, Distributed Training Strategies for the
    Structured Perceptron, NAACL 2010, Figure 3.
    """

    steps: int | str = 16
    inner: Updater = field(default_factory=lambda: sgd(0.1))
    warm: int = 0
    ensemble: bool = False
    #: The inner updater with the penalty; see :meth:`penalised`.
    descent: Descent | None = field(default=None, repr=False)

    own_penalty: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle(self, steps=_steps, inner=_inner, warm=whole(0), ensemble=flag)
        problems = []
        if self.warm and self.steps == "epoch":
            problems.append("warm is for pushes after a number of steps, and not after epochs")
        if self.ensemble and (self.steps, self.warm) != ("all", 0):
            problems.append("ensemble is for models that are averaged once, with steps='all'")
        if problems:
            raise InvalidCall("local_sgd", problems)

    def part_of(self, whole: Whole) -> local_sgd:
        """Return itself; an ensemble is one of an objective, which says how models predict."""
        if self.ensemble and not isinstance(whole.objective, Objective):
            problem = "an ensemble needs an objective: of your own rows nobody knows a prediction"
            raise InvalidCall("local_sgd", [problem])
        return self

    def penalised(self, l1: float, l2: float, mask: Any) -> local_sgd:
        """Return the loop whose steps go down the penalty as well."""
        return dataclasses.replace(self, descent=Descent(self.inner, l1, l2, mask))

    def cuts(self, per_epoch: int, epochs: int) -> Cuts:
        """Cut all batches into units of H: across the ends of epochs, unless H is an epoch."""
        if isinstance(self.steps, int):
            return Cuts(per_epoch, epochs, self.steps, flush=False, warm=self.warm)
        steps = per_epoch if self.steps == "epoch" else per_epoch * epochs
        return Cuts(per_epoch, epochs, max(1, steps), flush=self.steps == "epoch", warm=self.warm)

    def state_size(self, size: int) -> int:
        """As much as the inner updater remembers; of an ensemble the weight and the model."""
        if self.ensemble:
            return 1 + size
        return size * len(self.inner.init(np.zeros(1)))

    def unit(self, units: Units, clock: int, w: Array, state: Array | None) -> Gradient:
        """Make the steps of a unit; return how far they went, and what the inner updater knows."""
        local = _Local(self.descent or Descent(self.inner), w, state, units.first(clock))
        for step in range(units.steps(clock)):
            local.step(units.gradient(clock, step, local.w))
        found = local.result(w)
        if self.ensemble:  # there is no unit after this one that could need the inner state
            found = found._replace(state=np.append(found.weight, local.w).astype(np.float64))
        return found

    @staticmethod
    def models_of(states: Mapping[int, Array]) -> tuple[Array, list[Array]]:
        """Weights and parameters that an ensemble's workers have left as their states, in order.

        Workers whose rows had no weight have no model.
        """
        kept = [state for _, state in sorted(states.items()) if state[0] > 0]
        return np.array([state[0] for state in kept]), [state[1:] for state in kept]


def _steps(value: object) -> int | str:
    if isinstance(value, str) and value in ("epoch", "all"):
        return value
    try:
        return whole(1)(value)
    except ValueError:
        rule = "must be a whole number >= 1, 'epoch' or 'all'"
        raise ValueError(f"{rule}; it is {value!r}") from None


def _inner(value: object) -> Updater:
    if isinstance(value, Updater) and value.takes_gradients:
        return value
    raise ValueError(f"must be one of sparkdist.updaters that takes gradients; it is {value!r}")


class _Local:
    """A worker's own model, and the inner updater's state, in two copies each."""

    def __init__(self, descent: Descent, w: Array, state: Array | None, t: int):
        self._descent, self._t = descent, t
        self.w, self._new_w = w.copy(), np.empty_like(w)
        self._state, self._new_state = descent.init(w), descent.init(w)
        if state is not None:
            for part, saved in zip(self._state, state.reshape(-1, w.size), strict=True):
                part[...] = saved
        self._weight, self._examples, self._loss = 0.0, 0, [0.0]

    def step(self, gradient: Gradient) -> None:
        """Go down by one batch; one without weight is no step."""
        self._weight += gradient.weight
        self._examples += gradient.examples
        self._loss = [] if gradient.loss is None else [x + gradient.loss for x in self._loss]
        if gradient.weight > 0:
            mean = gradient.value / gradient.weight
            now, new = (self.w, self._state), (self._new_w, self._new_state)
            self._descent.update(self._t, mean, now[1], now[0], *new)
            (self.w, self._state), (self._new_w, self._new_state) = new, now
        self._t += 1

    def result(self, start: Array) -> Gradient:
        """How far it is from the start, times the weight of the batches; and the state."""
        value = self._weight * (start - self.w)
        loss = self._loss[0] if self._loss else None
        return Gradient(value, self._weight, self._examples, loss, self.memory())

    def memory(self) -> Array | None:
        """What the inner updater remembers, in one vector; None if that is nothing."""
        parts: State = self._state
        return np.concatenate(parts).astype(np.float64, copy=False) if parts else None
