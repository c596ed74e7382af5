"""Answer: what the server tells a worker."""

from __future__ import annotations

from typing import NamedTuple

from sparkdist.blocks import Array

__all__ = ["GO_ON", "Answer"]

#: After these a worker goes on to its next unit.
GO_ON = ("ok", "duplicate", "dropped", "skipped")


class Answer(NamedTuple):
    """What the server tells a worker; ``next`` is the clock with which the worker goes on.

    ``status`` is ok, duplicate, dropped (its round had closed), skipped (not finite),
    ahead (pushes before it are missing: the server was restored), stale (computed on parameters
    that were lost, or while the worker's last push was in the open round), conflict (other bytes
    than the first time), or wait (not yet).
    """

    status: str
    next: int
    version: int
    generation: str
    durable: int
    w: bytes | None = None
    state: Array | None = None
