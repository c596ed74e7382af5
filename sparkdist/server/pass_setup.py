"""What the server process of a resident job serves: the routes of its workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flask import Response

from sparkdist import wire
from sparkdist.blocks import Array
from sparkdist.errors import DecodeError
from sparkdist.server.incoming import Environ, count, identifier, number, read_body, read_fields
from sparkdist.server.passes import Passes, Task
from sparkdist.server.setup import Service
from sparkdist.server.web import Application, as_json, frame, make_app

__all__ = ["PassSetup"]

_LONGEST_WAIT = 20.0
#: Partitions that a worker may name before the driver has opened the run.
_MOST = 1 << 20
_ROOM = wire.HEADER_LIMIT + wire.PRELUDE_BYTES


@dataclass(frozen=True)
class PassSetup:
    """Everything that the server of a resident job is started from, and started again."""

    idle: float
    host: str
    port: int
    hosts: frozenset[str]
    token: str = field(repr=False)
    #: Type of vectors and gradients on the wire.
    dtype: str = "<f8"
    certificate: Path | None = None
    key: Path | None = None
    run: str = ""
    size: int = 0
    partitions: Sequence[int] = ()

    def service(self) -> Service:
        """Serve the passes of a dataset."""
        passes = Passes(self.idle)
        if self.run:
            passes.begin(self.run, self.size, self.partitions)
        routes = _Routes(passes, np.dtype(self.dtype))
        get = {"/healthz": routes.healthz, "/v1/status": routes.status}
        post = {"/v1/work": routes.work, "/v1/bring": routes.bring, "/v1/miss": routes.miss}
        app = make_app(self.token, self.hosts, get, post, routes.tell_fault)
        commands: dict[str, Callable[..., Any]] = {
            "begin": passes.begin,
            "evaluate": passes.evaluate,
            "wait_for": passes.wait_for,
            "end": passes.end,
            "status": passes.status,
            "fault": lambda: passes.fault,
        }
        return Service(app, commands, passes.end)

    def again(self) -> PassSetup:
        """Start as before: a pass that is lost is begun again by the driver."""
        return self


class _Routes:
    """The views: one method a route."""

    def __init__(self, passes: Passes, dtype: np.dtype[Any]):
        self._passes, self._dtype = passes, dtype

    def tell_fault(self, text: str) -> None:
        """Keep the traceback of an exception for the driver."""
        self._passes.fault = text

    def healthz(self, environ: Environ) -> Response:
        """Say that the process is alive; needs no token."""
        return as_json(200, {"alive": True})

    def status(self, environ: Environ) -> Response:
        """Give the counts as JSON."""
        return as_json(200, self._passes.status())

    def work(self, environ: Environ) -> Application:
        """Give a worker portions, with the vectors of the pass if it has not seen them."""
        return self._work(*self._question(read_fields(read_body(environ, _ROOM))))

    def bring(self, environ: Environ) -> Application:
        """Take a worker's sums, and give it the next portions in the same round trip."""
        message = wire.decode(read_body(environ, self._passes.longest + _ROOM))
        fields, portions = message.fields, self._numbers(message.fields, "portions")
        question = self._question(fields)  # may refuse, and then nothing is to be booked
        arrays = message.arrays()
        sums = [
            _rows(arrays, name, dtype)
            for name, dtype in (("totals", np.dtype(np.float64)), ("grads", self._dtype))
        ]
        self._passes.bring(identifier(fields, "run"), count(fields, "pass"), portions, *sums)
        return self._work(*question)

    def miss(self, environ: Environ) -> Application:
        """Hear that blocks are not where their worker is."""
        fields = read_fields(read_body(environ, _ROOM))
        self._passes.miss(identifier(fields, "run"), self._numbers(fields, "partitions"))
        return frame(200, wire.pieces({"status": "ok", "pass": 0, "kind": "", "portions": ""}))

    def _work(self, *question: Any) -> Application:
        return _answer(self._passes.work(*question), self._dtype)

    def _question(self, fields: dict[str, Any]) -> tuple[str, str, Sequence[int], str, int, float]:
        """Read what a worker says of itself: the arguments of ``Passes.work``."""
        return (
            identifier(fields, "run"),
            identifier(fields, "worker"),
            self._numbers(fields, "partitions"),
            identifier(fields, "place"),
            count(fields, "seen"),
            min(number(fields, "wait", 0.0), _LONGEST_WAIT),
        )

    def _numbers(self, fields: dict[str, Any], name: str) -> Sequence[int]:
        """Read portions, or partitions, of which there are no more: each has a portion."""
        try:
            return wire.numbers_of(fields.get(name), self._passes.n_portions or _MOST)
        except DecodeError as error:
            raise DecodeError(f"{name}: {error}") from None


def _answer(task: Task, dtype: np.dtype[Any]) -> Application:
    fields: dict[str, str | int] = {
        "status": task.status,
        "pass": task.number,
        "kind": task.kind,
        "portions": wire.spans(task.portions),
    }
    status = 503 if task.status == "wait" else 200
    if task.vectors is None:
        return frame(status, wire.pieces(fields))
    shape = (task.n_vectors, len(task.vectors) // dtype.itemsize // task.n_vectors)
    entry = wire.Entry("vectors", dtype.str, shape)
    return frame(status, wire.pieces(fields, [entry], [task.vectors]))


def _rows(arrays: dict[str, Any], name: str, dtype: np.dtype[Any]) -> Array:
    """Take an array with a row a portion."""
    found = arrays.get(name)
    if not isinstance(found, np.ndarray) or found.dtype != dtype or found.ndim != 2:
        raise DecodeError(f"{name} must be one dense array of {dtype} with a row a portion")
    return found
