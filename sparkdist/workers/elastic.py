"""Elastic averaging: workers explore on their own, held by a spring."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from sparkdist.blocks import Array
from sparkdist.client import Answer, Gradient, ParameterClient
from sparkdist.fields import below_1, settle, share, whole
from sparkdist.updaters import Rate
from sparkdist.updaters._check import rate_or_schedule
from sparkdist.updaters._rates import rate_at
from sparkdist.workers._base import Cuts, Units, Worker, merged

__all__ = ["elastic"]


@dataclass(frozen=True)
class elastic(Worker):
    """EASGD and, with momentum, EAMSGD: each worker keeps parameters x of its own.

    ::

        each batch:        v <- m v - rate g(x + m v);   x <- x + v      (m = 0: x - rate g(x))
        every tau batches: pull x~;  push alpha (x - x~), which the server adds to x~;
                           x <- x - alpha (x - x~)

    The last step of a unit and the exchange start from the same x: the gradient is taken at
    the x before the exchange.  x and v go with the push, and are kept with the ledger: a task
    that is run again goes on from them.

    Parameters
    ----------
    alpha
        Stiffness of the spring; the paper's is 0.9 divided by the number of workers.  Stable up
        to (4 - 2 h) / (4 - h), h the rate times the curvature.
    rate
        Step of a worker: a number, or a schedule in units of its batches.
    tau
        Batches between two exchanges.
    momentum
        m, of Nesterov's kind; 0 for plain EASGD.

    Source: Zhang, Choromanska and LeCun, Deep Learning with Elastic Averaging SGD, NIPS 2015,
    Algorithms 1 and 2.
    """

    alpha: float = 0.1
    rate: Rate = 0.1
    tau: int = 4
    momentum: float = 0.0
    #: Strengths of the penalty, and where it acts; see :meth:`penalised`.
    penalty: tuple[float, float, Any] = field(default=(0.0, 0.0, 1.0), repr=False)

    own_penalty: ClassVar[bool] = True
    differences: ClassVar[bool] = True

    def __post_init__(self) -> None:
        settle(self, alpha=share, rate=rate_or_schedule, tau=whole(1), momentum=below_1)

    def penalised(self, l1: float, l2: float, mask: Any) -> elastic:
        """Return the loop whose steps go down the penalty as well."""
        return dataclasses.replace(self, penalty=(l1, l2, 1.0 if mask is None else mask))

    def cuts(self, per_epoch: int, epochs: int) -> Cuts:
        """Cut all batches, across the ends of epochs, into units of tau."""
        return Cuts(per_epoch, epochs, self.tau, flush=False)

    def state_size(self, size: int) -> int:
        """Return the size of x, and of v where there is momentum."""
        return 2 * size if self.momentum else size

    def __call__(self, client: ParameterClient, partition: int, units: Units) -> None:
        """Work through a partition's units."""
        at = client.join(partition)
        while at.next < units.total:
            clock = at.next
            if at.state is None:  # the first unit: every worker starts from the centre
                at = client.pull(partition)
                if at.w is None or at.next != clock:
                    at = client.join(partition)
                    continue
                at = at._replace(state=self._begin(at.w))
            answer = self._unit(client, partition, units, at)
            # Another copy is ahead, the server was restored, or this unit did not count.
            at = answer or client.join(partition)
        client.leave(partition)

    def _begin(self, w: Array) -> Array:
        x = w.astype(np.float64)
        return np.concatenate([x, np.zeros_like(x)]) if self.momentum else x

    def _unit(
        self, client: ParameterClient, partition: int, units: Units, at: Answer
    ) -> Answer | None:
        """Walk tau - 1 steps, then make the last one and the exchange from the same x.

        The answer has the new state; None if the worker must ask where it is.
        """
        clock, n, state = at.next, units.steps(at.next), at.state
        assert state is not None
        x, v = self._parts(state)
        done: list[Gradient] = []
        for step in range(n - 1):
            x, v = self._step(x, v, units, clock, step, done)
        centre = client.pull(partition)
        if centre.w is None or centre.next != clock:
            return None
        spring = self.alpha * (x - centre.w)
        x, v = self._step(x, v, units, clock, n - 1, done)
        x = x - spring
        state = x if v is None else np.concatenate([x, v])
        pushed = merged(None, done)
        weight = pushed.weight or 1.0
        value = (weight * spring).astype(centre.w.dtype, copy=False)
        pushed = pushed._replace(value=value, weight=weight, state=state)
        answer = client.push(partition, clock, centre, pushed, want=False)
        counted = answer.status == "ok" and answer.next == clock + 1
        return answer._replace(state=state) if counted else None

    def _parts(self, state: Array) -> tuple[Array, Array | None]:
        if not self.momentum:
            return state, None
        x, v = state.reshape(2, -1)
        return x, v

    def _step(
        self, x: Array, v: Array | None, units: Units, clock: int, step: int, done: list[Gradient]
    ) -> tuple[Array, Array | None]:
        """One step of descent, Nesterov's where there is momentum."""
        (l1, l2, mask), rate = self.penalty, rate_at(self.rate, units.first(clock) + step)
        ahead = x if v is None else x + self.momentum * v
        gradient = units.gradient(clock, step, ahead)
        done.append(gradient)
        mean = gradient.value / gradient.weight if gradient.weight > 0 else np.zeros_like(x)
        move = -rate * (mean + l2 * mask * ahead)
        if v is not None:
            v = move = self.momentum * v + move
        x = x + move
        if l1:
            x = x - mask * np.clip(x, -rate * l1, rate * l1)
        return x, v
