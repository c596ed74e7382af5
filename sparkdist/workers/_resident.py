"""Resident: the worker loop of Sandblaster, at portions of one pass after the other."""

from __future__ import annotations

from collections.abc import Callable

from sparkdist.blocks import Array, Partial
from sparkdist.client import PassClient

__all__ = ["resident"]


def resident(client: PassClient, compute: Callable[[str, Array, int], Partial]) -> int:
    """Work at portions until the driver has no more passes; return how many there were.

    A result goes out with the question for the next portions, so that a pass costs a worker one
    round trip when it is small.

    Parameters
    ----------
    client
        Who is asked.
    compute
        ``compute(kind, vectors, portion)``: the sums over a portion; vectors of shape (k, size).

    Source: Dean et al., Large Scale Distributed Deep Networks, NIPS 2012, section 4.2.
    """
    worked, task, vectors = 0, client.work(), None
    while task.status != "over":
        if task.vectors is not None:
            vectors = task.vectors
        if task.status == "wait" or vectors is None:
            task = client.work()
            continue
        found = [compute(task.kind, vectors, portion) for portion in task.portions]
        worked += len(found)
        task = client.bring(task.number, task.portions, found)
    return worked
