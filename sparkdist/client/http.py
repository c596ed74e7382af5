"""The client of the model server over HTTP: what it asks, and what it makes of the answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparkdist import wire
from sparkdist.blocks import Array
from sparkdist.client.asking import LONG_POLL, Asking
from sparkdist.client.protocol import Address, Answer, Gradient
from sparkdist.errors import BadGradient, DecodeError

__all__ = ["HttpClient"]

#: What every answer in a frame says.
_FIELDS = {"status": str, "next": int, "version": int, "generation": str}


class HttpClient(Asking):
    """Talks to the model server; see :class:`Asking` for its deadlines and errors.

    Parameters
    ----------
    address
        Where the server is.
    entries
        The model's arrays, as a header describes them.
    patience
        Seconds without a useful answer after which a call gives up.
    state_bytes
        What the state of a worker takes at most.
    """

    def __init__(
        self,
        address: Address,
        entries: tuple[wire.Entry, ...],
        patience: float = 300.0,
        state_bytes: int = 0,
    ):
        longest = max(sum(entry.n_bytes for entry in entries), state_bytes)
        super().__init__(address, longest, patience)
        self._entries = entries

    def join(self, partition: int) -> Answer:
        """Ask at which clock this partition goes on."""
        return self._asked("join", self._frame(partition))

    def pull(self, partition: int) -> Answer:
        """Get the parameters, as soon as this worker may have them."""
        return self._asked("pull", self._frame(partition, wait=LONG_POLL))

    def push(
        self, partition: int, clock: int, at: Answer, gradient: Gradient, *, want: bool
    ) -> Answer:
        """Hand in the gradient that was computed on the parameters of ``at``."""
        entries, parts = self._pack(gradient.value)
        if gradient.state is not None:
            entries = (*entries, wire.Entry(wire.STATE, "<f8", gradient.state.shape))
            parts = [*parts, np.ascontiguousarray(gradient.state, "<f8")]
        frame = self._frame(
            partition,
            entries,
            parts,
            clock=clock,
            base=at.version,
            generation=at.generation,
            weight=float(gradient.weight),
            examples=int(gradient.examples),
            loss=None if gradient.loss is None else _told(float(gradient.loss)),
            want=want,
            wait=LONG_POLL,
        )
        return self._asked("push", frame)

    def leave(self, partition: int) -> Answer:
        """Say that nobody needs to wait for this partition any more."""
        return self._asked("leave", self._frame(partition))

    def __enter__(self) -> HttpClient:
        return self

    def _asked(self, what: str, frame: list[Any]) -> Answer:
        return self.ask(what, frame, self._understand)

    def _frame(
        self,
        partition: int,
        entries: Any = (),
        parts: Any = (),
        **fields: str | float | bool | None,
    ) -> list[Any]:
        named = {"run": self._address.run, "partition": partition, **fields}
        return wire.pieces(named, entries, parts)

    def _pack(self, value: Any) -> tuple[tuple[wire.Entry, ...], list[Any]]:
        """Describe a gradient, sparse where that is shorter."""
        if value is None:
            return (), []
        if isinstance(value, bytes):
            return (wire.Entry(wire.CODE, "|u1", (len(value),)),), [value]
        if isinstance(value, dict):
            arrays = {name: np.ascontiguousarray(array) for name, array in value.items()}
            return wire.entries_of(arrays), list(arrays.values())
        if len(self._entries) == 1 and (sparse := wire.sparse_if_shorter(value)) is not None:
            (entry,) = self._entries
            return wire.entries_of({entry.name: sparse._replace(shape=entry.shape)}), [*sparse[:2]]
        return self._entries, [value]

    def _understand(self, message: wire.Message) -> Answer | str:
        message, state = wire.without_state(message)
        fields = message.fields
        if wrong := [name for name, kind in _FIELDS.items() if type(fields.get(name)) is not kind]:
            raise DecodeError(f"the answer does not say its {wrong[0]}")
        if message.entries not in ((), self._entries):
            raise DecodeError("the parameters in the answer are not those of this model")
        status = fields["status"]
        if status == "conflict":
            raise BadGradient(
                "this task was run twice and gave other numbers the second time: under bsp a"
                " gradient must depend on its batch and the parameters alone"
            )
        w: Array | None = None
        if message.entries:
            w = message.flat(self._entries[0].dtype)
        elif status == "wait":
            return "others are still at work on an earlier round"
        return Answer(status, fields["next"], fields["version"], fields["generation"], w, state)


def _told(loss: float) -> float | str:
    """Return the loss as JSON has it, where no number is NaN or infinite."""
    return loss if abs(loss) <= wire.MOST else wire.NOT_FINITE
