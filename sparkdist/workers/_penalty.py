"""Who adds the penalty: the server, or the workers in the steps that they make."""

from __future__ import annotations

from sparkdist.blocks import Array
from sparkdist.errors import InvalidCall
from sparkdist.updaters import Updater
from sparkdist.workers._base import Worker

__all__ = ["share_penalty"]


def share_penalty(
    caller: str, worker: Worker, updater: Updater, l1: float, l2: float, mask: Array
) -> tuple[Worker, bool]:
    """Return the loop, with the penalty where it adds it itself, and whether the server adds it.

    Workers that descend on their own add it to their steps; else the server does to its own.

    Raises
    ------
    InvalidCall
        If nobody could.
    """
    if not (l1 or l2 or updater.penalises):
        return worker, False
    if not worker.own_penalty and not updater.takes_gradients:
        said = f"{updater!r} takes differences, and {worker!r} pushes gradients"
        raise InvalidCall(caller, [f"{said}: nobody could add the penalty"])
    return worker.penalised(l1, l2, mask), not worker.own_penalty
