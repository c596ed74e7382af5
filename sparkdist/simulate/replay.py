"""Replay: the workers of a recorded run, one step at a time, in the order of the record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sparkdist import wire
from sparkdist.client import Address
from sparkdist.errors import InvalidCall
from sparkdist.server.answer import Answer
from sparkdist.server.record import Event
from sparkdist.simulate.copies import Computing, Copy, Loop, Request
from sparkdist.simulate.desk import Desk
from sparkdist.workers import Units

__all__ = ["Replay"]


@dataclass
class _Player:
    """A worker that waits for the record: what it asked, and what it will be told."""

    copy: Copy
    asked: Request | None = None
    told: Answer | None = None
    #: The answer to its push is to come with parameters.
    wants: bool = False


class Replay:
    """Plays the events of a store to another one, with the loops that caused them.

    A worker is told what it asked for when the record has its next event: only then is it known
    that the answer arrived.  So a push whose answer was lost, and that was sent again, is played
    once; and a task that was run again begins anew where it joined.

    Parameters
    ----------
    desk, crew, loop
        Those of the recorded run.
    """

    def __init__(self, desk: Desk, crew: Sequence[Units], loop: Loop):
        self._desk, self._crew, self._loop = desk, crew, loop
        if desk.store.leases.seconds is not None:
            # Whose lease was over is in the record: here it is everybody's who does not ask.
            desk.store.leases.seconds = 0.0
        self._address = Address("replayed", 0, "", desk.store.ledger.run)
        self._players: dict[int, _Player] = {}
        #: Time of the last event.
        self.seconds = 0.0

    @property
    def over(self) -> bool:
        """Whether all workers have left."""
        return self._desk.store.ledger.n_active == 0

    def play(self, events: Iterable[Any], after_push: Callable[[float], None]) -> None:
        """Let it all happen again.

        Raises
        ------
        InvalidCall
            At the first event that does not follow from those before it.
        """
        try:
            read = [Event(*event) for event in events]
        except TypeError as error:
            raise InvalidCall("replay", [f"events must be those of a record: {error}"]) from None
        try:
            for number, event in enumerate(read):
                self.seconds = event.seconds
                try:
                    self._play(event)
                except _Misfit as error:
                    problem = f"event {number} of the record, {event}: {error}"
                    raise InvalidCall("replay", [problem]) from None
                if event.verb == "push":
                    after_push(event.seconds)
        finally:
            for player in self._players.values():
                player.copy.kill()

    def _play(self, event: Event) -> None:
        if not 0 <= event.partition < len(self._crew):
            raise _Misfit(f"there are {len(self._crew)} workers")
        if event.verb == "join":
            self._begin(event.partition)
        elif event.partition not in self._players:
            raise _Misfit("it comes before its worker has joined")
        elif event.verb == "fetch":
            self._fetch(event)
        elif event.verb == "push":
            self._push(event)
        else:
            self._serve(event.partition, self._next_of(event, "leave"))

    def _begin(self, partition: int) -> None:
        if partition in self._players:
            self._players[partition].copy.kill()
        units, entries = self._crew[partition], self._desk.entries
        player = _Player(Copy(self._loop, partition, units, self._address, entries))
        self._players[partition] = player
        self._go_on(player, None)
        assert player.asked is not None and player.asked.what == "join"
        self._serve(partition, player.asked)

    def _fetch(self, event: Event) -> None:
        player = self._players[event.partition]
        if player.wants and player.told is not None:
            taken, player.wants = self._desk.again(event.partition, player.told), False
        else:
            taken = self._desk.take(event.partition, self._next_of(event, "pull"))
        if taken.waits or taken.answer.version != event.version:
            raise _Misfit(f"the store is at version {taken.answer.version}")
        player.told = taken.answer

    def _push(self, event: Event) -> None:
        player = self._players[event.partition]
        if event.clock < self._desk.store.ledger.next.get(event.partition, 0):
            # The answer was lost, and what came with it: that is asked for again.
            player.wants = player.told is not None and player.told.w is not None
            return
        request = self._next_of(event, "push")
        fields = wire.decode(b"".join(request.frame)).fields
        if (fields["clock"], fields["base"]) != (event.clock, event.version):
            raise _Misfit(f"the worker pushes {fields['clock']}, of version {fields['base']}")
        taken = self._desk.take(event.partition, request)
        # The parameters are handed out when the record says so.
        player.told = taken.answer._replace(w=None)
        player.wants = taken.waits or taken.answer.w is not None

    def _serve(self, partition: int, request: Request) -> None:
        self._players[partition].told = self._desk.take(partition, request).answer

    def _next_of(self, event: Event, what: str) -> Request:
        """Tell a worker what it asked, and see whether it asks next what the record says."""
        player = self._players[event.partition]
        if player.told is not None:
            message, _ = self._desk.pack(player.told)
            self._go_on(player, message)
        if player.asked is None or player.asked.what != what:
            asks = "is done" if player.asked is None else f"asks for {player.asked.what}"
            raise _Misfit(f"the worker {asks}")
        return player.asked

    def _go_on(self, player: _Player, message: wire.Message | None) -> None:
        """Run a loop to its next request; what it computes takes no time."""
        asked = player.copy.step(message)
        while isinstance(asked, Computing):
            asked = player.copy.step()
        player.asked, player.told = asked, None


class _Misfit(Exception):
    """What happens is not what the record says."""
