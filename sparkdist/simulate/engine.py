"""Engine: workers, a network and a server on a clock of their own, around the real store.

::

    worker    | computing: latency |                              | computing ...
    network                        | request |          | answer |
    server                                   | in line, | service |

What a batch gives, and what the server makes of it, is computed by the worker loop, the policy, the
rule and the updater themselves; only the time that it takes is made up.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.random import Generator, SeedSequence

from sparkdist import wire
from sparkdist.blocks import Array
from sparkdist.client import Address
from sparkdist.errors import PassFailed
from sparkdist.server.answer import Answer
from sparkdist.simulate.conditions import Conditions
from sparkdist.simulate.copies import Computing, Copy, Loop, Request
from sparkdist.simulate.desk import Desk
from sparkdist.simulate.events import Events
from sparkdist.simulate.latency import Moment
from sparkdist.workers import Units

__all__ = ["Engine"]

#: A worker that dies so often at one unit will not get through it.
_MOST_DEATHS = 1000


@dataclass
class _Worker:
    """A worker, and the books on it."""

    number: int
    units: Units
    #: Of its latencies, and of its deaths: one does not change the other.
    chance: Generator
    fate: Generator
    copy: Copy | None = None
    #: Counts copies: what was booked for one does not happen to the next.
    life: int = 0
    #: Version of the parameters that it has, and when it was handed them.
    version: int = 0
    draws: int = 0
    deaths: int = 0
    #: Deaths since its last push.
    in_vain: int = 0
    busy: float = 0.0
    away: float = 0.0
    done_at: float = 0.0
    left: float | None = None


class _Visit(NamedTuple):
    """A request on its way, or in line."""

    worker: _Worker
    life: int
    request: Request
    size: int


class _Waiting(NamedTuple):
    """A worker that the policy holds back, and what it will be told beside the parameters."""

    worker: _Worker
    life: int
    first: Answer


class Engine:
    """Runs a loop on each worker's units until all have left.

    Parameters
    ----------
    desk
        The server.
    crew
        The workers' units.
    loop
        What each of them does.
    conditions
        How long it takes.
    seed
        Of all chance: each worker has streams of its own, so that one more changes nothing for
        the others.
    observe
        Called after each push.
    """

    def __init__(
        self,
        desk: Desk,
        crew: Sequence[Units],
        loop: Loop,
        conditions: Conditions,
        seed: int,
        observe: Callable[[Engine], None] = lambda engine: None,
    ):
        self._desk, self._loop, self._seed, self._observe = desk, loop, seed, observe
        self._latency, self._network, self._service, self._deaths = conditions
        self._address = Address("simulated", 0, "", desk.store.ledger.run)
        self._events = Events()
        desk.store.leases.use(lambda: self._events.now)
        self._workers = [
            _Worker(number, units, self._stream(number, 1), self._stream(number, 2))
            for number, units in enumerate(crew)
        ]
        self._of_server, self._served = self._stream(0, 3), 0
        self._line: deque[_Visit] = deque()
        self._serving = False
        #: When the server has sent what it has to send.
        self._sent_by = 0.0
        self._waiting: list[_Waiting] = []
        self._seen: tuple[int, ...] = ()
        #: When to look again because a lease ends then.
        self._alarm = inf
        self._at_work = len(self._workers)
        #: Bytes of requests, and of answers.
        self.received = self.sent = 0

    @property
    def now(self) -> float:
        """Simulated seconds since the start."""
        return self._events.now

    @property
    def deaths(self) -> int:
        """How many there were."""
        return sum(worker.deaths for worker in self._workers)

    def idle(self) -> Array:
        """Of each worker, the share of its time that it neither computed nor was dead."""
        ends = np.array([self.now if w.left is None else w.left for w in self._workers])
        worked = np.array([w.busy - max(0.0, w.done_at - self.now) for w in self._workers])
        worked += [w.away for w in self._workers]
        return np.clip(1.0 - worked / np.where(ends > 0, ends, 1.0), 0.0, 1.0) * (ends > 0)

    def run(self, until: float = inf) -> bool:
        """Let everything happen; return False if the time was over first.

        Raises
        ------
        PassFailed
            If workers wait for something that will never come, or one dies again and again.
        """
        try:
            for worker in self._workers:
                self._events.at(0.0, self._begin, worker)
            while self._at_work:
                if (next_at := self._events.next) is None:
                    stuck = [worker.number for worker in self._workers if worker.left is None]
                    raise PassFailed(f"workers {stuck[:10]} wait for what will never come")
                if next_at > until:
                    return False
                self._events.step()
            return True
        finally:
            for worker in self._workers:
                if worker.copy is not None:
                    worker.copy.kill()

    # --- workers ----------------------------------------------------------------------------

    def _begin(self, worker: _Worker) -> None:
        desk, number = self._desk, worker.number
        worker.copy = Copy(self._loop, number, worker.units, self._address, desk.entries)
        if self._deaths is not None:
            seconds = self._deaths.life(worker.fate, self._moment(worker))
            self._events.after(seconds, self._die, worker, worker.life)
        self._go_on(worker, worker.life, None)

    def _go_on(self, worker: _Worker, life: int, message: wire.Message | None) -> None:
        """Run a loop to its next wait; nothing happens if it has died."""
        if worker.life != life or worker.copy is None:
            return
        asked = worker.copy.step(message)
        if isinstance(asked, Computing):
            seconds = self._latency.draw(worker.chance, self._moment(worker))
            worker.draws += 1
            worker.busy += seconds
            worker.done_at = self.now + seconds
            self._events.at(worker.done_at, self._go_on, worker, life, None)
        elif isinstance(asked, Request):
            visit = _Visit(worker, life, asked, asked.n_bytes)
            self._events.after(self._network.seconds(visit.size), self._arrive, visit)
        else:
            worker.left = self.now
            self._at_work -= 1

    def _die(self, worker: _Worker, life: int) -> None:
        if worker.life != life or worker.left is not None or worker.copy is None:
            return
        worker.copy.kill()
        worker.copy = None
        worker.life += 1
        worker.deaths += 1
        worker.in_vain += 1
        if worker.in_vain > _MOST_DEATHS:
            raise PassFailed(f"worker {worker.number} died {_MOST_DEATHS} times at one unit")
        worker.busy -= max(0.0, worker.done_at - self.now)
        worker.done_at = self.now
        assert self._deaths is not None
        seconds = self._deaths.absence(worker.fate, self._moment(worker))
        worker.away += seconds
        self._events.after(seconds, self._begin, worker)
        if any(waiting.worker is worker for waiting in self._waiting):
            self._desk.store.leases.renew(worker.number)  # the server sees that it hangs up
            self._look_at_who_waits()

    # --- the server -------------------------------------------------------------------------

    def _arrive(self, visit: _Visit) -> None:
        """Put a request in line: also one of a worker that has died since."""
        self.received += visit.size
        self._line.append(visit)
        if not self._serving:
            self._serve_next()

    def _serve_next(self) -> None:
        self._serving = bool(self._line)
        if self._serving:
            visit = self._line.popleft()
            moment = Moment(0, self._served, self._desk.store.version, self._seed)
            self._served += 1
            seconds = self._service.time(self._of_server, moment)
            seconds += visit.size / self._service.bandwidth
            self._events.after(seconds, self._serve, visit)

    def _serve(self, visit: _Visit) -> None:
        """Do what is asked, and send what there is to send before the next one's turn."""
        worker, life, request, _ = visit
        self._sent_by = self.now
        answer, waits = self._desk.take(worker.number, request)
        if request.what == "push":
            worker.in_vain = 0
            self._observe(self)
        if waits and worker.life == life:
            self._waiting.append(_Waiting(worker, life, answer))
        elif waits:
            self._desk.store.leases.renew(worker.number)  # nobody is there who could wait
        else:
            self._send(worker, life, answer)
        if self._waiting:
            self._look_at_who_waits()
        self._events.at(self._sent_by, self._serve_next)

    def _look_at_who_waits(self) -> None:
        """Answer those who may go on, if anything has changed that a policy looks at."""
        seen = self._desk.standing()
        if seen != self._seen:
            self._seen = seen
            self._answer_who_may_go_on()
        alarm = self._desk.store.leases.end if self._waiting else inf
        if alarm not in (inf, self._alarm):
            self._alarm = alarm
            self._events.at(alarm, self._look_at_who_waits)

    def _answer_who_may_go_on(self) -> None:
        still = []
        for waiting in self._waiting:
            worker, life, first = waiting
            if worker.life != life:
                continue
            answer, waits = self._desk.again(worker.number, first)
            if waits:
                still.append(waiting)
            else:
                self._send(worker, life, answer)
        self._waiting = still

    def _send(self, worker: _Worker, life: int, answer: Answer) -> None:
        message, size = self._desk.pack(answer)
        self.sent += size
        self._sent_by = max(self._sent_by, self.now) + size / self._service.bandwidth
        arrives = self._sent_by + self._network.seconds(size)
        self._events.at(arrives, self._receive, worker, life, message)

    def _receive(self, worker: _Worker, life: int, message: wire.Message) -> None:
        if message.entries == self._desk.entries:
            worker.version = message.fields["version"]
        self._go_on(worker, life, message)

    def _moment(self, worker: _Worker) -> Moment:
        return Moment(worker.number, worker.draws, worker.version, self._seed)

    def _stream(self, number: int, kind: int) -> Generator:
        return np.random.default_rng(SeedSequence(self._seed, spawn_key=(number, kind)))
