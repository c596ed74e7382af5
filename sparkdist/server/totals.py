"""Totals: sums of portions, added up in one order whatever the order in which they come."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence

from sparkdist.blocks import Partial

__all__ = ["Totals"]


class Totals:
    """The total of a pass, the same bit for bit for any schedule.

    The portions of a partition are added in their order, then the partitions in theirs.  What
    comes early waits; so at most one sum a partition is kept, and what is ahead of its turn.

    Parameters
    ----------
    partitions
        The partition of each portion.
    """

    def __init__(self, partitions: Sequence[int]):
        self._partitions = partitions
        self._turn: dict[int, list[int]] = {}
        for number in reversed(range(len(partitions))):
            self._turn.setdefault(partitions[number], []).append(number)
        self._early: dict[int, Partial] = {}
        self._sums: dict[int, Partial] = {}

    def add(self, number: int, partial: Partial) -> None:
        """Add the sums of a portion; each portion once."""
        self._early[number] = partial
        partition = self._partitions[number]
        turn = self._turn[partition]
        while turn and turn[-1] in self._early:
            following = self._early.pop(turn.pop())
            before = self._sums.get(partition)
            self._sums[partition] = following if before is None else before + following

    def total(self) -> Partial:
        """Return the sum over all portions, when all have been added."""
        return functools.reduce(operator.add, (self._sums[p] for p in sorted(self._sums)))
