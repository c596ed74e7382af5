"""Ledger: which push has been counted; law 1, exactly once.

A push is named (run, partition, clock).  For each partition the ledger holds the next clock
that it expects, which is all that it takes to tell a push that is new from one that was counted
and from one that comes too early.  Its size is one entry a partition, however long the run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from sparkdist.blocks import Array
from sparkdist.consistency import Consistency
from sparkdist.errors import DecodeError, StaleRun
from sparkdist.server.timeline import Timeline

__all__ = ["STALENESS_BINS", "Last", "Ledger", "Verdict"]

#: Staleness beyond this is counted as this.
STALENESS_BINS = 1000


_SUMS = ("examples", "loss", "weight")


class Verdict(Enum):
    """What a push is."""

    NEW = "new"
    #: It was counted before, and counts no second time.
    DUPLICATE = "duplicate"
    #: It was counted before with other bytes: the first one stands.
    OTHER_BYTES = "duplicate_other_bytes"
    #: Pushes before it are missing: the server was restored from an older checkpoint.
    AHEAD = "ahead"


class Last(NamedTuple):
    """The last push that was counted of a partition: of its bytes a checksum."""

    digest: int
    version: int


@dataclass
class Ledger:
    """The books of one run.

    ``received`` pushes are always the sum of the other counts: applied, kept (in the open
    round), duplicate, dropped, and rejected for a reason.
    """

    run: str
    n_workers: int
    #: What the units of this run are, so that nobody goes on with others under their names.
    plan: str = ""
    next: dict[int, int] = field(default_factory=dict)
    last: dict[int, Last] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    #: How many applied pushes were computed on parameters that were so many versions old.
    staleness: Counter[int] = field(default_factory=Counter)
    #: What each worker has to know to go on at the clock that is expected of it, if it says so.
    states: dict[int, Array] = field(default_factory=dict)
    #: Sums over the applied pushes.
    examples: int = 0
    loss: float = 0.0
    weight: float = 0.0
    #: Bytes of the pushes that came, and of the parameters that went out, since the server's start.
    bytes_in: int = 0
    bytes_out: int = 0
    #: How these have grown.
    timeline: Timeline = field(default_factory=Timeline, compare=False)
    #: Workers whose lease is over: nobody waits for them until they are heard of.
    away: set[int] = field(default_factory=set, compare=False)
    #: How many of the workers that are waited for are at each clock.
    _at: Counter[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        waited_for = (p for p in range(self.n_workers) if self._is_waited_for(p))
        self._at = Counter(self.next.get(partition, 0) for partition in waited_for)

    def refuse_stale(self, run: str) -> None:
        """Raise StaleRun for another run."""
        if run != self.run:
            raise StaleRun(f"run {run!r:.80} is over, or is not this server's")

    def refuse_stranger(self, run: str, partition: int) -> None:
        """Raise StaleRun for another run, DecodeError for a partition that this one lacks."""
        self.refuse_stale(run)
        if partition >= self.n_workers:
            raise DecodeError(f"the run has {self.n_workers} partitions, not {partition}")

    def judge(self, partition: int, clock: int, digest: int) -> Verdict:
        """Say what a push is; nothing changes."""
        expected = self.next.get(partition, 0)
        if clock > expected:
            return Verdict.AHEAD
        if clock == expected:
            return Verdict.NEW
        last = self.last.get(partition)
        if last is not None and clock == expected - 1 and digest != last.digest:
            return Verdict.OTHER_BYTES
        return Verdict.DUPLICATE

    def known(self, partition: int, clock: int, digest: int, repeats: bool) -> str | None:
        """Book a push that is not the next one of its partition, and say what it is.

        Where a unit ``repeats``, other bytes under its name are a conflict.
        """
        verdict = self.judge(partition, clock, digest)
        if verdict is Verdict.NEW:
            return None
        self.counts[verdict.value] += 1
        if verdict is Verdict.OTHER_BYTES:
            return "conflict" if repeats else "duplicate"
        return verdict.value

    def accept(self, partition: int, digest: int, version: int) -> None:
        """Book the push that was expected of a partition."""
        self._go_to(partition, self.next.get(partition, 0) + 1)
        self.last[partition] = Last(digest, version)

    def count(self, staleness: int, examples: int, loss: float | None, weight: float) -> None:
        """Book what an applied push was made of."""
        self.counts["applied"] += 1
        self.staleness[min(staleness, STALENESS_BINS)] += 1
        self.examples += examples
        if loss is not None:
            self.loss += loss
            self.weight += weight
        self.timeline.add(self.counts["applied"], self.examples, self.loss, self.weight)

    def take_back(self, partition: int) -> None:
        """Expect the last push of a partition again."""
        self._go_to(partition, self.next[partition] - 1)
        self.last.pop(partition, None)

    def expect_again(self, partitions: Iterable[int], reason: str, *, kept: bool) -> None:
        """Book pushes as rejected; those that were kept for a round are expected again."""
        for partition in partitions:
            if kept:
                self.counts["kept"] -= 1
                self.take_back(partition)
            self.counts[f"rejected_{reason}"] += 1

    def first_version(self, partition: int, clock: int) -> int | None:
        """Return the version that the last push of a partition led to, if ``clock`` is that one."""
        last = self.last.get(partition)
        is_last = last is not None and clock == self.next.get(partition, 0) - 1
        return last.version if is_last and last is not None else None

    def leave(self, partition: int) -> None:
        """Wait for a worker no longer."""
        self._count_at(partition, -1)
        self.gone.add(partition)

    def miss(self, partitions: Iterable[int]) -> None:
        """Wait for workers no longer, until they are heard of: their leases are over."""
        for partition in partitions:
            self._count_at(partition, -1)
            self.away.add(partition)

    def hear(self, partition: int) -> None:
        """Wait for a worker again, at the clock that is expected of it."""
        if partition in self.away:
            self.away.remove(partition)
            self._count_at(partition, +1)

    def _is_waited_for(self, partition: int) -> bool:
        return partition not in self.gone and partition not in self.away

    def _go_to(self, partition: int, clock: int) -> None:
        self._count_at(partition, -1)
        self.next[partition] = clock
        self._count_at(partition, +1)

    def _count_at(self, partition: int, n: int) -> None:
        if self._is_waited_for(partition):
            clock = self.next.get(partition, 0)
            self._at[clock] += n
            if self._at[clock] <= 0:
                del self._at[clock]

    def status(self, silent: Mapping[int, float], timeline: bool = False) -> dict[str, Any]:
        """The books for a reader; ``silent`` are the seconds since each worker was heard of."""
        return {
            **(self.timeline.status() if timeline else {}),
            "run": self.run,
            "plan": self.plan,
            "counts": dict(self.counts),
            "staleness": sorted(self.staleness.items()),
            "examples": self.examples,
            "loss": self.loss,
            "weight": self.weight,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "n_workers": self.n_workers,
            "workers": [
                {
                    "partition": partition,
                    "clock": clock,
                    "left": partition in self.gone,
                    "seconds_ago": round(silent.get(partition, 0.0), 3),
                }
                for partition, clock in sorted(self.next.items())
            ],
        }

    @property
    def n_active(self) -> int:
        """Workers that have not left, joined or not."""
        return self.n_workers - len(self.gone)

    @property
    def slowest(self) -> int:
        """Smallest clock of the workers that are waited for; who did not join yet is at 0.

        When that is nobody, because all have left, a copy of a task may still be there.
        """
        return min(self._at, default=1 << 62)

    @property
    def leader(self) -> int | None:
        """Smallest partition of those that have joined and not left."""
        return min((p for p in self.next if p not in self.gone), default=None)

    def lets_go(self, policy: Consistency, partition: int, version: int) -> bool:
        """Whether a policy lets a worker have the parameters of a version."""
        if policy.alone(version) and partition != self.leader:
            return False
        return not policy.waits or policy.may_pull(self.next.get(partition, 0), self.slowest)

    @property
    def balanced(self) -> bool:
        """Whether received is the sum of what became of the pushes."""
        return self.counts["received"] == sum(
            count for name, count in self.counts.items() if name != "received"
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything but the workers' states, for a checkpoint in JSON."""
        return {
            "run": self.run,
            "n_workers": self.n_workers,
            "plan": self.plan,
            "next": sorted(self.next.items()),
            "last": [[partition, *last] for partition, last in sorted(self.last.items())],
            "gone": sorted(self.gone),
            "counts": dict(self.counts),
            "staleness": sorted(self.staleness.items()),
            "sums": [getattr(self, name) for name in _SUMS],
            "timeline": self.timeline.saved,
        }

    def copy(self) -> Ledger:
        """Return books that do not change with these."""
        return Ledger.from_dict(self.to_dict(), self.states, self.away)

    def without(self, partitions: Iterable[int]) -> Ledger:
        """Return books in which the pushes kept of these partitions did not come yet."""
        books = self.copy()
        for partition in partitions:
            books.take_back(partition)
            books.counts.subtract(("received", "kept"))
        return books

    @classmethod
    def from_dict(
        cls, saved: dict[str, Any], states: Mapping[int, Array] = {}, away: Iterable[int] = ()
    ) -> Ledger:
        """Read what :meth:`to_dict` gave; the workers' states are arrays, and kept apart."""
        return cls(
            saved["run"],
            saved["n_workers"],
            saved["plan"],
            dict(saved["next"]),
            {partition: Last(digest, version) for partition, digest, version in saved["last"]},
            set(saved["gone"]),
            Counter(saved["counts"]),
            Counter(dict(saved["staleness"])),
            dict(states),
            **dict(zip(_SUMS, saved["sums"], strict=True)),
            timeline=Timeline(saved.get("timeline", ())),
            away=set(away),
        )
