"""Copy: one run of a worker's loop, stopped wherever it waits for something.

The loops of :mod:`sparkdist.workers` are written as if a worker had the computer to itself: they
call a client, and the client answers.  Here each runs in a greenlet, which steps aside at such
a call and goes on there when the answer comes.  So the simulator runs the loops themselves,
thousands of them in one thread.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from typing import Any, NamedTuple, TypeAlias, TypeVar

from greenlet import GreenletExit, greenlet

from sparkdist import wire
from sparkdist.blocks import Array
from sparkdist.client import Address, Gradient, HttpClient, ParameterClient
from sparkdist.workers import Units

__all__ = ["Computing", "Copy", "Loop", "Request"]

#: A worker's loop: who is asked, as whom, and what there is to do.
Loop: TypeAlias = Callable[[ParameterClient, int, Units], None]
T = TypeVar("T")


class Request(NamedTuple):
    """What a worker sends: the frame that would go over HTTP."""

    what: str
    frame: list[Any]

    @property
    def n_bytes(self) -> int:
        """Its length."""
        return sum(len(piece) for piece in self.frame)


class Computing(NamedTuple):
    """A batch that takes its time."""


class Copy:
    """A loop that is run step by step.

    Parameters
    ----------
    loop, partition, units
        What is run, as whom, on what.
    address, entries
        Of the client: the run, and the model's arrays.
    """

    def __init__(
        self,
        loop: Loop,
        partition: int,
        units: Units,
        address: Address,
        entries: tuple[wire.Entry, ...],
    ):
        self._alive = True
        client = _Client(address, entries, self._wait)
        timed = _Timed(units, self._wait)
        self._greenlet = greenlet(lambda _: loop(client, partition, timed))
        # What the caller has set holds in the loop too: np.errstate, for instance.
        self._greenlet.gr_context = copy_context()

    def step(self, value: Any = None) -> Request | Computing | None:
        """Go on with what was waited for, to the next wait; None if the loop is over."""
        return self._greenlet.switch(value)

    def kill(self) -> None:
        """Let it go no further; what it holds is released."""
        self._alive = False
        if not self._greenlet.dead:
            self._greenlet.throw()

    def _wait(self, asked: Request | Computing) -> Any:
        if not self._alive:  # a `finally` of the loop has something to say: nobody hears it
            raise GreenletExit
        return self._greenlet.parent.switch(asked)


class _Client(HttpClient):
    """The client of the model server, without a network: frames, codecs and all."""

    def __init__(
        self,
        address: Address,
        entries: tuple[wire.Entry, ...],
        wait: Callable[[Request], wire.Message],
    ):
        super().__init__(address, entries)
        self._wait = wait

    def ask(self, what: str, frame: list[Any], understand: Callable[[wire.Message], T | str]) -> T:
        """Send once: the answer comes when it is there to be used."""
        answer = understand(self._wait(Request(what, frame)))
        assert not isinstance(answer, str), answer
        return answer


class _Timed:
    """Units that take simulated time: each batch that is asked for."""

    def __init__(self, units: Any, wait: Callable[[Computing], None]):
        self._units, self._wait, self.total = units, wait, units.total
        self.steps, self.first = units.steps, units.first

    def gradient(self, clock: int, step: int, w: Array) -> Gradient:
        # First the time, then the work: a worker that dies meanwhile has cost nothing.
        self._wait(Computing())
        return self._units.gradient(clock, step, w)

    def rows(self, clock: int, step: int) -> Any:
        self._wait(Computing())
        return self._units.rows(clock, step)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._units, name)
