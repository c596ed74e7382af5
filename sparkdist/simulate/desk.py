"""Desk: what is between a frame and the store, as the server's routes do it."""

from __future__ import annotations

from typing import NamedTuple

from sparkdist import wire
from sparkdist.server.admission import admit
from sparkdist.server.answer import GO_ON, Answer
from sparkdist.server.store import Store
from sparkdist.simulate.copies import Request

__all__ = ["Desk", "Taken"]


class Taken(NamedTuple):
    """What became of a request: its answer, or, with ``waits``, what there is of it yet."""

    answer: Answer
    waits: bool


class Desk:
    """Asks the store, which never blocks here: whoever has to wait is told so.

    Parameters
    ----------
    store
        The model server's own; a run is open.
    entries
        The model's arrays, as a header describes them.
    """

    def __init__(self, store: Store, entries: tuple[wire.Entry, ...]):
        self.store, self.entries = store, entries
        self._run = store.ledger.run

    def take(self, partition: int, request: Request) -> Taken:
        """Do what a worker asks for.

        Raises
        ------
        BadGradient
            For a push that cannot be applied, and is not to be left out.
        """
        if request.what == "push":
            return self._push(b"".join(request.frame))
        if request.what == "pull":
            return self._taken(partition, self.store.pull(self._run, partition, 0.0), True)
        return Taken(getattr(self.store, request.what)(self._run, partition), False)

    def again(self, partition: int, first: Answer) -> Taken:
        """Look whether somebody who waits may have the parameters now."""
        answer = self.store.pull(self._run, partition, 0.0)
        status = "ok" if first.status == "wait" else first.status
        return self._taken(partition, answer._replace(status=status), True)

    def _taken(self, partition: int, answer: Answer, wants: bool) -> Taken:
        waits = wants and answer.w is None
        if waits:
            self.store.leases.hold(partition)
        return Taken(answer, waits)

    def standing(self) -> tuple[int, ...]:
        """What policies look at: whoever waits waits on as long as this is the same."""
        store, ledger = self.store, self.store.ledger
        ledger.miss(store.leases.over())
        return store.version, ledger.slowest, len(ledger.next), len(ledger.gone)

    def pack(self, answer: Answer) -> tuple[wire.Message, int]:
        """Make the message of an answer, and say how long its frame is.

        All messages of a version share its bytes: of 1,000 workers that wait for one.
        """
        fields = answer._asdict()
        w, state = fields.pop("w"), fields.pop("state")
        entries: tuple[wire.Entry, ...] = ()
        body = memoryview(b"")
        if state is not None:
            entries = (wire.Entry(wire.STATE, "<f8", state.shape),)
            body = memoryview(state).cast("B")
        elif w is not None:
            entries, body = self.entries, memoryview(w)
        size = sum(len(piece) for piece in wire.pieces(fields, entries, [body]))
        return wire.Message(fields, entries, body), size

    def _push(self, frame: bytes) -> Taken:
        message = wire.decode(frame)
        found = admit(self.store, message, len(frame))
        if isinstance(found, Answer):
            return Taken(found, False)
        want = message.fields["want"]
        answer = self.store.push(self._run, found, want=want)
        # Those who do not go on are sent back, and have to pull.
        return self._taken(found.partition, answer, want and answer.status in GO_ON)
