"""Coordinator: who works at which portion of a pass, and which result counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf

__all__ = ["Coordinator"]

#: A worker gets this part of what is left of its own at a time.  With 25 portions for each of 200
#: workers, 5 % of them 3-10 times slower, a pass takes 4.7 times the ideal when it is a half, 2.7
#: when it is a quarter and 1.3 with single portions, in 6, 10 and 26 requests of a worker.
_PART = 4


@dataclass
class _Work:
    """A portion that was handed out: to whom, and when it is late."""

    due: float
    workers: set[str] = field(default_factory=set)


class Coordinator:
    """Hands out the portions of one pass; time is what the caller says it is.

    A worker gets, one request after the other: portions of its own partitions, a quarter of what
    is left of them each time, or ``least``; then single ones of others whose blocks are at its
    place; then those that are late.  The first result of a portion counts.  So a slow or a lost
    worker delays a pass by a few portions, and not by its share.

    Parameters
    ----------
    partitions
        The partition of each portion; a portion's position is its number.
    homes
        Of the partitions whose worker is known, its name and the host that has the blocks; learnt,
        and kept by the caller for the next pass.
    late
        Time for one portion after which another copy is worth while; infinite for never.
    soonest
        Time for any number of portions before which no copy is worth while.
    least
        A worker gets so many of its own at a time at least, and all that is left of them if that
        is less than twice as many.

    Source: Dean et al., Large Scale Distributed Deep Networks, NIPS 2012, section 4.2, Sandblaster.
    """

    def __init__(
        self,
        partitions: Sequence[int],
        homes: dict[int, tuple[str, str]] | None = None,
        late: float = inf,
        soonest: float = 0.0,
        least: int = 1,
    ):
        self._partitions, self._least = partitions, least
        self._late, self._soonest = late, soonest
        self._homes = {} if homes is None else homes
        self._dead: set[str] = set()
        # In reverse: what is taken first is the last of its list, where lists are cheap to shorten.
        self._idle: dict[int, list[int]] = {}
        for number in reversed(range(len(partitions))):
            self._idle.setdefault(partitions[number], []).append(number)
        self._busy: dict[int, _Work] = {}
        self._hands: dict[str, list[int]] = {}
        self._left = set(range(len(partitions)))

    @property
    def done(self) -> bool:
        """Whether every portion has a result."""
        return not self._left

    def hand_out(self, worker: str, own: Iterable[int], place: str, now: float) -> list[int]:
        """Give portions to a worker; none if there is nothing that it could do yet.

        ``worker`` is one life of a task: another attempt has another name, and may get what the
        first one had.  Asking again without a result in between, because the answer was lost, gives
        the same portions.
        """
        self._settle(worker, own, place)
        self._hands[worker] = [n for n in self._hands.get(worker, ()) if n in self._busy]
        if not self._hands[worker]:
            self._hands[worker] = self._choose(worker, own, place, now)
        return list(self._hands[worker])

    def accept(self, number: int) -> bool:
        """Book a result; False if the portion had one, or does not exist."""
        if number not in self._left:
            return False
        self._left.remove(number)
        if self._busy.pop(number, None) is None:  # of a worker that an earlier server had asked
            self._idle[self._partitions[number]].remove(number)
        return True

    def next_late(self, now: float) -> float:
        """When the next portion will be late; infinite if none will."""
        return min((work.due for work in self._busy.values() if work.due > now), default=inf)

    def _settle(self, worker: str, own: Iterable[int], place: str) -> None:
        """Note where partitions are now; whoever had them before is dead."""
        for partition in own:
            before, _ = self._homes.get(partition, (worker, place))
            if before != worker:
                self._dead.add(before)
            self._homes[partition] = worker, place

    def _choose(self, worker: str, own: Iterable[int], place: str, now: float) -> list[int]:
        mine = [partition for partition in own if self._idle.get(partition)]
        if mine:
            left = sum(len(self._idle[partition]) for partition in mine)
            # Less than `least` is not worth another request.
            count = left if left < 2 * self._least else max(-(-left // _PART), self._least)
            return self._start(worker, mine, count, now)
        for partition, idle in self._idle.items():
            if idle and self._is_at(partition, place):
                return self._start(worker, [partition], 1, now)
        return self._again(worker, place, now)

    def _start(self, worker: str, partitions: Sequence[int], count: int, now: float) -> list[int]:
        taken: list[int] = []
        for partition in partitions:
            idle = self._idle[partition]
            while idle and len(taken) < count:
                taken.append(idle.pop())
        for number in taken:
            self._busy[number] = _Work(self._due(len(taken), now), {worker})
        return taken

    def _due(self, count: int, now: float) -> float:
        return now + max(self._soonest, self._late * count)

    def _is_at(self, partition: int, place: str) -> bool:
        return self._homes.get(partition, ("", None))[1] == place

    def _again(self, worker: str, place: str, now: float) -> list[int]:
        """Another copy of what is late, or of what only the dead work at; the first due first."""
        for number, work in sorted(self._busy.items(), key=lambda item: item[1].due):
            wanted = work.due <= now or work.workers <= self._dead
            if wanted and self._is_at(self._partitions[number], place):
                work.workers.add(worker)
                work.due = self._due(1, now)
                return [number]
        return []
