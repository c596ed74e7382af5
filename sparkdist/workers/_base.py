"""What a worker loop is, and how it cuts its batches into what one push carries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

from sparkdist.blocks import Array
from sparkdist.client import Gradient, ParameterClient
from sparkdist.consistency import Consistency
from sparkdist.updaters import Updater

__all__ = ["Cuts", "UnitWorker", "Units", "Whole", "Worker", "merged"]


class Cuts(NamedTuple):
    """Batches of all epochs, cut into units.

    The first ``warm`` units have one batch, the others ``n_push``; the last one, and with
    ``flush`` that of each epoch, may be shorter.
    """

    per_epoch: int
    epochs: int
    n_push: int = 1
    flush: bool = True
    warm: int = 0

    @property
    def total(self) -> int:
        """How many units there are in all."""
        if self.flush:
            return self.epochs * -(-self.per_epoch // self.n_push)
        rest = max(0, self.epochs * self.per_epoch - self.warm)
        return min(self.warm, self.epochs * self.per_epoch) + -(-rest // self.n_push)

    def first(self, clock: int) -> int:
        """Return the number of a unit's first batch, counted from the start of the run."""
        if self.flush:
            epoch, unit = divmod(clock, -(-self.per_epoch // self.n_push))
            return epoch * self.per_epoch + unit * self.n_push
        return clock if clock <= self.warm else self.warm + (clock - self.warm) * self.n_push

    def steps(self, clock: int) -> int:
        """How many batches a unit has."""
        end = self.epochs * self.per_epoch
        if clock + 1 < self.total:
            end = self.first(clock + 1)
        return end - self.first(clock)


class Units(Protocol):
    """The work of one worker, cut into units: what one push carries."""

    #: How many units there are in all.
    total: int

    def steps(self, clock: int) -> int:
        """How many batches a unit has, at least 1."""

    def first(self, clock: int) -> int:
        """Return the number of a unit's first batch, counted from the start of the run."""

    def gradient(self, clock: int, step: int, w: Array) -> Gradient:
        """Sums over batch ``step`` of a unit, at w."""


class Whole(NamedTuple):
    """What a worker may have to know of the run that it is a part of."""

    #: The loss; or, of an RDD's own rows, the user's function.
    objective: Any
    n_workers: int
    #: Of all workers: how many rows there are, and the sum of their weights; 0 if nobody knows.
    n_rows: int
    weight: float
    consistency: Consistency
    updater: Updater
    #: The updater gets what is pushed as it is: no codec, no clipping, no damping.
    plain: bool
    #: Strengths of the penalty, and 1 where it acts, 0 where it does not.
    l1: float
    l2: float
    mask: Array


class Worker(ABC):
    """A worker loop: what runs on a partition from ``join`` to ``leave``.

    It knows neither Spark nor HTTP, and may be run again from its start, or twice at once, at
    any time: it goes on where the server says, and what it pushes is a function of the unit, of
    the parameters that it was given, and of the state that came with ``join``.

    A member refuses its arguments when it is made, all that are wrong in one InvalidCall.
    """

    #: A worker's state ends as the weight of its rows and its own parameters, flat: the run makes
    #: an ensemble of them.
    ensemble: bool = False
    #: The penalty belongs into the steps that the workers make; the server adds none.
    own_penalty: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, client: ParameterClient, partition: int, units: Units) -> None:
        """Work through a partition's units."""

    def cuts(self, per_epoch: int, epochs: int) -> Cuts:
        """Cut a partition's batches into units."""
        return Cuts(per_epoch, epochs)

    def state_size(self, size: int) -> int:
        """How many numbers a worker's state has; ``size`` is that of the parameters."""
        return 0

    def part_of(self, whole: Whole) -> Worker:
        """Return the loop for a run.

        Raises
        ------
        InvalidCall
            If it cannot be a part of this one.
        """
        return self

    #: What is pushed is added to the parameters as it is: no gradient to be gone down.
    differences: ClassVar[bool] = False

    def misfits(self, *, in_rounds: bool, takes_gradients: bool) -> list[str]:
        """Say what does not go together with the server's policy, or with its updater."""
        if takes_gradients != self.differences:
            return []
        pushes, takes = (
            ("differences", "gradients") if takes_gradients else ("gradients", "differences")
        )
        return [f"{self!r} pushes {pushes}, and the updater takes {takes} of the parameters"]

    def penalised(self, l1: float, l2: float, mask: Any) -> Worker:
        """Return the loop that penalises its own steps; others leave that to the server."""
        return self


class UnitWorker(Worker):
    """A worker that fetches, works at a unit, and pushes what came out, unit by unit."""

    @abstractmethod
    def unit(self, units: Units, clock: int, w: Array, state: Array | None) -> Gradient:
        """Work at a unit from the server's parameters and the state after the unit before.

        ``state`` is None before the first one; what is returned has the one after this unit.
        """

    def __call__(self, client: ParameterClient, partition: int, units: Units) -> None:
        """Work through a partition's units."""
        at = client.join(partition)
        state = at.state
        while at.next < units.total:
            clock = at.next
            if at.w is None:
                at = client.pull(partition)
            if at.w is not None and at.next == clock:
                found = self.unit(units, clock, at.w, state)
                at = client.push(partition, clock, at, found, want=True)
                if at.status == "ok" and at.next == clock + 1:
                    state = found.state
                    continue
            # Another copy is ahead, the server was restored, or this unit did not count.
            at = client.join(partition)
            state = at.state
        client.leave(partition)


def merged(value: Any, parts: Sequence[Gradient]) -> Gradient:
    """Return what is pushed for some batches: their weight, rows and, if all have one, loss."""
    losses = [part.loss for part in parts if part.loss is not None]
    return Gradient(
        value,
        sum(part.weight for part in parts),
        sum(part.examples for part in parts),
        sum(losses) if len(losses) == len(parts) else None,
    )
