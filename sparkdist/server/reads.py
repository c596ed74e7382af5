"""Reads: what an updater wants to know of the moment at which a worker read the parameters."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from sparkdist.blocks import Array

__all__ = ["Reads"]

#: Of each partition so many are kept: a worker has one at a time, and copies of its task theirs.
KEPT = 4


class Reads:
    """The last reads of each partition, by version.

    Partitions that read the same version share what is remembered of it, and a read that is older
    than the one of a push that came in is forgotten: of n partitions there are some 2 n vectors,
    never more than 4 n + 1.

    Parameters
    ----------
    first, note
        The version from which everybody starts, and what is remembered of it; that one stays.
    """

    def __init__(self, first: int, note: Array):
        self._first = first
        self._notes: dict[int, Array] = {first: note}
        self._readers: Counter[int] = Counter()
        self._of: dict[int, deque[int]] = {}

    def __len__(self) -> int:
        return len(self._notes)

    def add(self, partition: int, version: int, note: Callable[[], Array]) -> None:
        """Book that a partition reads a version; ``note`` is called if nobody did before."""
        mine = self._of.setdefault(partition, deque())
        if version in mine:
            return
        if version not in self._notes:
            self._notes[version] = note()
        mine.append(version)
        self._readers[version] += 1
        if len(mine) > KEPT:
            self._forget(mine.popleft())

    def find(self, partition: int, version: int) -> Array | None:
        """Return what is remembered of a read, or None; older ones of the partition go."""
        mine = self._of.get(partition, deque())
        if version == self._first or version in mine:
            while mine and mine[0] < version:
                self._forget(mine.popleft())
            return self._notes[version]
        return None

    def _forget(self, version: int) -> None:
        self._readers[version] -= 1
        if not self._readers[version]:
            del self._readers[version]
            if version != self._first:
                del self._notes[version]
