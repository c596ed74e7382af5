"""The task of a resident worker: what runs on the executors."""

from __future__ import annotations

import functools
import hashlib
import socket
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from sparkdist.blocks import Array, Block, Partial
from sparkdist.client import Address, PassClient, Worker
from sparkdist.errors import BadData
from sparkdist.objectives import Objective
from sparkdist.spark.data.ingest import Handle
from sparkdist.spark.data.residency import BlocksGone, Place, open_blocks
from sparkdist.spark.transport import acknowledge_at_once
from sparkdist.workers import resident

__all__ = ["Part", "TaskSetup", "work_at"]


class Part(NamedTuple):
    """Consecutive blocks of a partition."""

    place: Place
    start: int
    stop: int


class TaskSetup(NamedTuple):
    """What all workers of a job are told."""

    address: Address
    objective: Objective
    #: Of a vector.
    size: int
    parts: tuple[Part, ...]
    patience: float
    messages: str


class _Blocks:
    """The blocks of a worker, mapped when they are first needed."""

    def __init__(self) -> None:
        self._opened: dict[int, list[Block]] = {}

    def of(self, place: Place) -> list[Block]:
        """All blocks of a partition."""
        if place.partition not in self._opened:
            with open_blocks(place) as blocks:
                # What is mapped stays so for as long as an array looks into it.
                self._opened[place.partition] = list(blocks)
        return self._opened[place.partition]


def work_at(setup: TaskSetup, handles: Iterable[Handle]) -> Iterator[int]:
    """Be a resident worker, and give the number of portions that it worked at."""
    acknowledge_at_once()
    parts, objective = setup.parts, setup.objective
    blocks, own = _Blocks(), list[int]()
    places = {part.place.partition: part.place for part in parts}
    gone: list[int] = []
    for handle in handles:
        if handle.problem:
            raise BadData(f"the source has changed since it was ingested: {handle.problem}")
        if handle.n_rows:
            partition = handle.place.partition
            places[partition] = handle.place  # a lost executor's blocks are somewhere else now
            own.append(partition)
            try:
                blocks.of(handle.place)
            except BlocksGone:
                gone.append(partition)

    def compute(kind: str, vectors: Array, number: int) -> Partial:
        place, start, stop = parts[number]
        try:
            some = blocks.of(places[place.partition])[start:stop]
        except BlocksGone:  # of another worker, whose executor was lost
            client.miss([place.partition])
            raise
        return functools.reduce(Partial.__add__, (_sums(objective, kind, vectors, b) for b in some))

    me, kind = Worker(uuid.uuid4().hex, own, _host_name()), np.dtype(setup.messages)
    with PassClient(setup.address, me, kind, 2 * setup.size, setup.patience) as client:
        if gone:
            client.miss(gone)
        yield resident(client, compute) if own else 0


def _sums(objective: Objective, kind: str, vectors: Array, block: Block) -> Partial:
    if kind == "value_and_grad":
        return objective.value_and_grad(vectors[0], block)
    if kind == "metric":
        return Partial(0.0, objective.metric(vectors[0], block).ravel(), float(block.weight.sum()))
    return Partial(0.0, objective.hessp(vectors[0], vectors[1], block), float(block.weight.sum()))


def _host_name() -> str:
    """A name of this host that is an identifier."""
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:16]
