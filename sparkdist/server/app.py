"""App: the Flask routes.  They check, decode and encode; the arithmetic is the store's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flask import Flask, Response

from sparkdist import wire
from sparkdist.server import page
from sparkdist.server.admission import admit
from sparkdist.server.answer import Answer
from sparkdist.server.incoming import (
    Budget,
    Environ,
    count,
    identifier,
    number,
    read_body,
    read_fields,
)
from sparkdist.server.metrics import exposition
from sparkdist.server.rules import model_entries
from sparkdist.server.store import Store
from sparkdist.server.web import Application, View, as_json, frame, make_app

__all__ = ["Settings", "create_app"]

#: A worker waits at most so long for one answer, then asks again: no proxy cuts a request before.
LONGEST_WAIT = 20.0
#: What a frame may be longer than the dense parameters: its header.
_ROOM = wire.HEADER_LIMIT + wire.PRELUDE_BYTES
#: Bodies of pushes that may be in memory at the same time: so many bytes, or so many bodies.
_IN_MEMORY, _BODIES = 256 << 20, 8
_STATUS = {"wait": 503, "ahead": 409, "stale": 409, "conflict": 409}


@dataclass(frozen=True)
class Settings:
    """What the routes need to know."""

    token: str = field(repr=False)
    hosts: frozenset[str]
    layout: Any
    dtype: str
    body_limit: int


def create_app(store: Store, settings: Settings) -> Flask:
    """Make the WSGI application of a store."""
    routes = Routes(store, settings)
    get: dict[str, View] = {
        **page.views(),
        "/healthz": routes.healthz,
        "/readyz": routes.readyz,
        "/metrics": routes.metrics,
        "/v1/status": routes.status,
        "/v1/model": routes.model,
    }
    post = {
        "/v1/join": routes.join,
        "/v1/pull": routes.pull,
        "/v1/push": routes.push,
        "/v1/leave": routes.leave,
    }
    return make_app(settings.token, settings.hosts, get, post, routes.tell_fault)


class Routes:
    """The views: one method a route."""

    def __init__(self, store: Store, settings: Settings):
        self._store, self._settings = store, settings
        self._entries = model_entries(settings.layout, settings.dtype)
        self._budget = Budget(max(_IN_MEMORY, _BODIES * settings.body_limit))

    def tell_fault(self, text: str) -> None:
        """Keep the traceback of an exception for the driver."""
        self._store.fault = text

    def healthz(self, environ: Environ) -> Response:
        """Say that the process is alive; needs no token."""
        return as_json(200, {"alive": True})

    def readyz(self, environ: Environ) -> Response:
        """Say whether pushes are accepted, and checkpoints written."""
        ready = self._store.status()["ready"]
        return as_json(200 if ready else 503, {"ready": ready})

    def metrics(self, environ: Environ) -> Response:
        """Give the books to Prometheus."""
        text = exposition(self._store.status())
        return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    def status(self, environ: Environ) -> Response:
        """Give the books as JSON, and how they came to be."""
        return as_json(200, self._store.status(timeline=True))

    def model(self, environ: Environ) -> Application:
        """Give the parameters to anybody with the token, at once."""
        version, w = self._store.parameters()
        return frame(200, [wire.encode({"version": version}, self._entries, [w])])

    def join(self, environ: Environ) -> Application:
        """Tell a worker at which clock it goes on."""
        fields = read_fields(read_body(environ, _ROOM))
        return self._answer(self._store.join(*_worker(fields)))

    def pull(self, environ: Environ) -> Application:
        """Give a worker the parameters when the policy lets it have them."""
        fields = read_fields(read_body(environ, _ROOM))
        wait = min(number(fields, "wait", 0.0), LONGEST_WAIT)
        return self._answer(
            self._store.pull(identifier(fields, "run"), count(fields, "partition"), wait)
        )

    def leave(self, environ: Environ) -> Application:
        """Stop waiting for a worker."""
        fields = read_fields(read_body(environ, _ROOM))
        return self._answer(
            self._store.leave(identifier(fields, "run"), count(fields, "partition"))
        )

    def push(self, environ: Environ) -> Application:
        """Count a gradient once; the answer carries the next parameters if they are wanted."""
        limit = self._settings.body_limit + self._store.state_bytes
        room = self._budget.take(environ, limit)
        try:
            body = read_body(environ, limit)
            message = wire.decode(body)
            if self._store.consistency.waits:  # the round keeps it anyway; the others' are to come
                self._budget.give_back(room)
                room = 0
            return self._count(message, len(body))
        finally:
            self._budget.give_back(room)

    def _count(self, message: wire.Message, n_bytes: int) -> Application:
        found = admit(self._store, message, n_bytes)
        if isinstance(found, Answer):
            return self._answer(found)
        fields = message.fields
        wait = min(number(fields, "wait", 0.0), LONGEST_WAIT)
        want = fields.get("want") is True
        run = identifier(fields, "run")
        return self._answer(self._store.push(run, found, want=want, timeout=wait))

    def _answer(self, answer: Answer) -> Application:
        arrays = ("w", "state")
        fields = {name: value for name, value in answer._asdict().items() if name not in arrays}
        status = _STATUS.get(answer.status, 200)
        if answer.state is not None:
            entry = wire.Entry(wire.STATE, "<f8", answer.state.shape)
            return frame(status, wire.pieces(fields, [entry], [answer.state]))
        if answer.w is None:
            return frame(status, wire.pieces(fields))
        return frame(status, wire.pieces(fields, self._entries, [answer.w]))


def _worker(fields: dict[str, Any]) -> tuple[str, int]:
    return identifier(fields, "run"), count(fields, "partition")
