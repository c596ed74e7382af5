"""The client over HTTP: what it asks, when it asks again, and what it makes of the answers."""

from __future__ import annotations

import json
import random
import ssl
import time
from types import TracebackType
from typing import Any

import numpy as np

from sparkdist import wire
from sparkdist.blocks import Array
from sparkdist.client.connection import Connection, Reply
from sparkdist.client.protocol import Address, Answer, Gradient
from sparkdist.errors import (
    BadGradient,
    DecodeError,
    ServerError,
    ServerUnavailable,
    StaleRun,
    WrongToken,
)

__all__ = ["HttpClient"]

#: Seconds that one request may wait for the policy's permission; the server has its own limit.
_LONG_POLL = 15.0
#: Of silence, beyond the time that an answer may wait.
_READ_SECONDS = 30.0
#: First pause before the next try; it doubles up to the longest, each time with jitter.
_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
#: Worth another try: the server is starting, draining, overloaded, or cannot write its checkpoint.
_AGAIN = {429, 502, 503, 504, 507}
#: What every answer in a frame says.
_FIELDS = {"status": str, "next": int, "version": int, "generation": str}
_FINAL = {401: WrongToken, 422: BadGradient}


class HttpClient:
    """Talks to the model server; every call has a deadline and can be repeated without harm.

    Parameters
    ----------
    address
        Where the server is.
    entries
        The model's arrays, as a header describes them.
    patience
        Seconds without a useful answer after which a call gives up: what a restart of the
        server, or a break of the network, may take; and what others may let this worker wait.

    Raises
    ------
    ServerUnavailable
        After ``patience``; it names host and port.
    StaleRun, WrongToken, BadGradient
        At once: another try would end the same way.
    """

    def __init__(self, address: Address, entries: tuple[wire.Entry, ...], patience: float = 300.0):
        self._address, self._entries, self._patience = address, entries, patience
        # The longest answer is the model with the longest header.
        limit = sum(entry.n_bytes for entry in entries) + wire.HEADER_LIMIT + wire.PRELUDE_BYTES
        self._connection = Connection(address, limit, _LONG_POLL + _READ_SECONDS)

    def join(self, partition: int) -> Answer:
        """Ask at which clock this partition goes on."""
        return self._ask("join", self._frame(partition))

    def pull(self, partition: int) -> Answer:
        """Get the parameters, as soon as this worker may have them."""
        return self._ask("pull", self._frame(partition, wait=_LONG_POLL))

    def push(
        self, partition: int, clock: int, at: Answer, gradient: Gradient, *, want: bool
    ) -> Answer:
        """Hand in the gradient that was computed on the parameters of ``at``."""
        entries, parts = self._pack(gradient.value)
        frame = self._frame(
            partition,
            entries,
            parts,
            clock=clock,
            base=at.version,
            generation=at.generation,
            weight=float(gradient.weight),
            examples=int(gradient.examples),
            loss=None if gradient.loss is None else float(gradient.loss),
            want=want,
            wait=_LONG_POLL,
        )
        return self._ask("push", frame)

    def leave(self, partition: int) -> Answer:
        """Say that nobody needs to wait for this partition any more."""
        return self._ask("leave", self._frame(partition))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> HttpClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

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
        if isinstance(value, dict):
            arrays = {name: np.ascontiguousarray(array) for name, array in value.items()}
            return wire.entries_of(arrays), list(arrays.values())
        if len(self._entries) == 1 and (sparse := wire.sparse_if_shorter(value)) is not None:
            (entry,) = self._entries
            return wire.entries_of({entry.name: sparse._replace(shape=entry.shape)}), [*sparse[:2]]
        return self._entries, [value]

    def _ask(self, what: str, frame: list[Any]) -> Answer:
        """Send until there is an answer that can be used, or the deadline has come."""
        deadline, pause = time.monotonic() + self._patience, _PAUSE
        while True:
            trouble: str
            try:
                answer = self._once(what, frame, deadline)
                if isinstance(answer, Answer):
                    return answer
                trouble = answer
            except ssl.SSLCertVerificationError as error:
                where = f"{self._address.host}:{self._address.port}"
                raise ServerError(f"the model server at {where} is another: {error}") from error
            except (OSError, DecodeError) as error:
                trouble = f"{type(error).__name__}: {error}"
            left = deadline - time.monotonic()
            if left <= 0:
                raise ServerUnavailable(
                    f"no {what} from the model server at {self._address.host}:"
                    f"{self._address.port} within {self._patience:g} s; the last try: {trouble}"
                )
            time.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _once(self, what: str, frame: list[Any], deadline: float) -> Answer | str:
        # The last try may be a short one, but it is one.
        until = max(deadline, time.monotonic() + 0.1)
        reply = self._connection.post(f"/v1/{what}", frame, until)
        if reply.content_type == wire.CONTENT_TYPE:
            return self._understand(wire.decode(reply.body))
        return _explain(reply)

    def _understand(self, message: wire.Message) -> Answer | str:
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
        return Answer(status, fields["next"], fields["version"], fields["generation"], w)


def _explain(reply: Reply) -> str:
    """Say what an answer without a frame means, or raise it."""
    status = reply.status
    try:
        said = json.loads(bytes(reply.body))
        error, message = said["error"], said["message"]
    except (ValueError, KeyError, TypeError, RecursionError):
        error, message = "http", f"status {status}"
    if status in _AGAIN:
        return f"{status} {message}"
    if status == 409 and error == "run":
        raise StaleRun(message)
    if status in _FINAL:
        raise _FINAL[status](message)
    raise ServerError(f"the model server answered {status}: {message}")
