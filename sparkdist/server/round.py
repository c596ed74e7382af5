"""Round: pushes that are kept until there are enough of them, and then applied as one."""

from __future__ import annotations

from collections.abc import Iterator

from sparkdist.blocks import Array
from sparkdist.server.rules import Push

__all__ = ["Round"]


class Round:
    """The pushes of the open round, by partition and clock."""

    def __init__(self) -> None:
        self._pushes: dict[tuple[int, int], Push] = {}

    def __len__(self) -> int:
        return len(self._pushes)

    def __contains__(self, partition: int) -> bool:
        return partition in self.partitions

    def __iter__(self) -> Iterator[int]:
        """Give the partition of each push: one that has several, several times."""
        return iter(sorted(partition for partition, _ in self._pushes))

    @property
    def partitions(self) -> set[int]:
        """Those that have a push in it."""
        return {partition for partition, _ in self._pushes}

    def keep(self, push: Push) -> None:
        """Add a push."""
        self._pushes[push.partition, push.clock] = push

    def state_of(self, partition: int) -> Array | None:
        """Return the state in the last push of a partition."""
        clocks = [clock for p, clock in self._pushes if p == partition]
        return self._pushes[partition, max(clocks)].state if clocks else None

    def take(self) -> list[Push]:
        """Empty it; its pushes in the order of partitions and clocks, whenever they came."""
        pushes = [self._pushes[key] for key in sorted(self._pushes)]
        self._pushes.clear()
        return pushes
