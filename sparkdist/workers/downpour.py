"""Downpour: the worker loop of DistBelief."""

from __future__ import annotations

from typing import Protocol

from sparkdist.blocks import Array
from sparkdist.client import Gradient, ParameterClient

__all__ = ["Units", "downpour"]


class Units(Protocol):
    """The work of one worker, cut into units: what one push carries."""

    #: How many units there are in all.
    total: int

    def steps(self, clock: int) -> int:
        """How many batches a unit has, at least 1."""

    def gradient(self, clock: int, step: int, w: Array) -> Gradient:
        """Sums over batch ``step`` of a unit, at w."""


def downpour(
    client: ParameterClient, partition: int, units: Units, *, n_fetch: int = 1, rate: float = 0.0
) -> None:
    """Work through a worker's units: fetch, add up gradients, push.

    ::

        every n_fetch batches:  w <- the server's
        each batch:             g <- gradient(w);  accrued += g;  w <- w - rate mean(g)
        at the end of a unit:   push accrued

    A unit has n_push batches, the last one of an epoch perhaps fewer: it is flushed.  Where the
    server sends a worker back, or ahead, it goes: any unit can be computed again, from the
    server's parameters.  The fetch blocks; with n_fetch = 1 it comes with the answer to a push.

    Parameters
    ----------
    client, partition, units
        Who is asked, as whom, and what there is to do.
    n_fetch
        Batches between fetches.
    rate
        Step of the local descent between fetches; 0 for none.

    Source: Dean et al., Large Scale Distributed Deep Networks, NIPS 2012, section 4.1 and
    appendix, Algorithm 1.1.
    """
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
            answer = client.push(partition, clock, base, accrued, want=age >= n_fetch)
            if answer.w is not None:
                at, w, age = answer, answer.w, 0
            else:
                at = at._replace(next=answer.next)
                w = None if answer.status in ("ahead", "stale") else w
    client.leave(partition)


def _add(a: Gradient, b: Gradient) -> Gradient:
    loss = None if a.loss is None or b.loss is None else a.loss + b.loss
    return Gradient(a.value + b.value, a.weight + b.weight, a.examples + b.examples, loss)
