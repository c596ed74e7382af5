"""A visit: work on the blocks of a partition where they are; runs on the executors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

from sparkdist.blocks import Block
from sparkdist.errors import BadData
from sparkdist.spark.collector import freeze_imports
from sparkdist.spark.data.ingest import Handle
from sparkdist.spark.data.residency import BlocksGone, open_blocks
from sparkdist.spark.transport import acknowledge_at_once

__all__ = ["Missing", "visit"]

T = TypeVar("T")


class Missing(NamedTuple):
    """The answer of a partition whose blocks are not on the machine that Spark chose."""

    partition: int


def visit(
    work: Callable[[int, Iterator[Block]], T], handles: Iterable[Handle]
) -> Iterator[T | Missing]:
    """Give ``work(partition, blocks)``, or Missing, for each handle whose partition has rows.

    Raises
    ------
    BadData
        If the partition was ingested again and its rows have become bad.
    """
    acknowledge_at_once()
    freeze_imports()
    for handle in handles:
        if handle.problem:
            raise BadData(f"the source has changed since it was ingested: {handle.problem}")
        if not handle.n_rows:
            continue
        try:
            with open_blocks(handle.place) as blocks:
                yield work(handle.place.partition, blocks)
        except BlocksGone:
            yield Missing(handle.place.partition)
