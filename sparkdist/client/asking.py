"""Asking: one question to the server, asked until there is an answer or the time is over."""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar

from sparkdist import wire
from sparkdist.client.connection import Connection, Reply
from sparkdist.client.protocol import Address
from sparkdist.errors import (
    BadGradient,
    DecodeError,
    ServerError,
    ServerUnavailable,
    StaleRun,
    WrongToken,
)

__all__ = ["LONG_POLL", "Asking"]

#: Seconds that one request may wait for the policy's permission; the server has its own limit.
LONG_POLL = 15.0
#: Of silence, beyond the time that an answer may wait.
_READ_SECONDS = 30.0
#: First pause before the next try; it doubles up to the longest, each time with jitter.
_PAUSE, _LONGEST_PAUSE = 0.05, 2.0
#: Worth another try: the server is starting, draining, overloaded, or cannot write its checkpoint.
_AGAIN = {429, 502, 503, 504, 507}
_FINAL = {401: WrongToken, 422: BadGradient}
T = TypeVar("T")


class Asking:
    """Asks the server; every question has a deadline, and can be asked again without harm.

    Parameters
    ----------
    address
        Where the server is.
    answer_bytes
        What the arrays of an answer take at most.
    patience
        Seconds without a useful answer after which it gives up: what a restart of the server, or
        a break of the network, may take; and what others may let this worker wait.

    Raises
    ------
    ServerUnavailable
        After ``patience``; it names host and port.
    StaleRun, WrongToken, BadGradient
        At once: another try would end the same way.
    """

    def __init__(self, address: Address, answer_bytes: int, patience: float = 300.0):
        self._address, self._patience = address, patience
        # The longest answer is the arrays with the longest header.
        limit = answer_bytes + wire.HEADER_LIMIT + wire.PRELUDE_BYTES
        self._connection = Connection(address, limit, LONG_POLL + _READ_SECONDS)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __exit__(self, *error: object) -> None:
        self.close()

    def ask(self, what: str, frame: list[Any], understand: Callable[[wire.Message], T | str]) -> T:
        """Send until there is an answer that can be used, or the deadline has come.

        ``understand`` gives the answer of a frame, or says why it has to be asked for again.
        """
        deadline, pause = time.monotonic() + self._patience, _PAUSE
        while True:
            trouble: str
            try:
                answer = self._once(what, frame, understand, deadline)
                if not isinstance(answer, str):
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

    def _once(
        self,
        what: str,
        frame: list[Any],
        understand: Callable[[wire.Message], T | str],
        deadline: float,
    ) -> T | str:
        # The last try may be a short one, but it is one.
        until = max(deadline, time.monotonic() + 0.1)
        reply = self._connection.post(f"/v1/{what}", frame, until)
        if reply.content_type == wire.CONTENT_TYPE:
            return understand(wire.decode(reply.body))
        return _explain(reply)


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
