"""Downpour: the worker loop of DistBelief."""

from __future__ import annotations

from dataclasses import dataclass

from sparkdist.blocks import Array
from sparkdist.client import Gradient, ParameterClient
from sparkdist.fields import not_negative, settle, whole
from sparkdist.workers._base import Cuts, Units, Worker, merged

__all__ = ["downpour"]


@dataclass(frozen=True)
class downpour(Worker):
    """Work through a worker's units: fetch, add up gradients, push.

    ::

        every n_fetch batches:  w <- the server's
        each batch:             g <- gradient(w);  accrued += g;  w <- w - local_rate mean(g)
        at the end of a unit:   push accrued

    A unit has n_push batches, the last one of an epoch perhaps fewer: it is flushed.  Where the
    server sends a worker back, or ahead, it goes: any unit can be computed again, from the
    server's parameters.  The fetch blocks; with n_fetch = 1 it comes with the answer to a push.

    Parameters
    ----------
    n_fetch, n_push
        Batches between fetches, and between pushes.
    local_rate
        Step of the local descent between fetches; 0 for none.

    Source: Dean et al., Large Scale Distributed Deep Networks, NIPS 2012, section 4.1 and
    appendix, Algorithm 1.1.
    """

    n_fetch: int = 1
    n_push: int = 1
    local_rate: float = 0.0

    def __post_init__(self) -> None:
        settle(self, n_push=whole(1), n_fetch=whole(1), local_rate=not_negative)

    def misfits(self, *, in_rounds: bool, takes_gradients: bool) -> list[str]:
        """Refuse to fetch less often than to push: a round takes gradients of its own version."""
        problems = super().misfits(in_rounds=in_rounds, takes_gradients=takes_gradients)
        if not in_rounds or self.n_fetch <= self.n_push:
            return problems
        rule = (
            f"n_fetch is {self.n_fetch} and n_push {self.n_push}: where pushes are kept for rounds"
        )
        return [*problems, f"{rule}, n_fetch must be at most n_push, or most gradients are dropped"]

    def cuts(self, per_epoch: int, epochs: int) -> Cuts:
        """Cut each epoch into n_push batches, and what is left."""
        return Cuts(per_epoch, epochs, self.n_push)

    def __call__(self, client: ParameterClient, partition: int, units: Units) -> None:
        """Work through a partition's units."""
        n_fetch, rate = self.n_fetch, self.local_rate
        at = client.join(partition)
        w: Array | None = None
        age = 0  # batches since w was fetched
        while at.next < units.total:
            clock, accrued = at.next, None
            for step in range(units.steps(clock)):
                if w is None or age >= n_fetch:
                    at = client.pull(partition)
                    w, age = at.w, 0
                    if at.next != clock or w is None:
                        break  # the server was restored, or another copy of this task is further
                if accrued is None:
                    base = at
                gradient = units.gradient(clock, step, w)
                accrued = gradient if accrued is None else _add(accrued, gradient)
                age += 1
                if rate and age < n_fetch and gradient.weight:
                    w = w - (rate / gradient.weight) * gradient.value
            else:
                assert accrued is not None
                # After the last unit, too: who left before its round was over could not push again.
                answer = client.push(partition, clock, base, accrued, want=age >= n_fetch)
                if answer.w is not None:
                    at, w, age = answer, answer.w, 0
                else:
                    at = at._replace(next=answer.next)
                    w = None if answer.status in ("ahead", "stale") else w
        client.leave(partition)


def _add(a: Gradient, b: Gradient) -> Gradient:
    return merged(a.value + b.value, [a, b])
