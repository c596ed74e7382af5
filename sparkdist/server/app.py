"""App: the Flask routes.  They check, decode and encode; the arithmetic is the store's."""

from __future__ import annotations

import hmac
import json
import logging
import re
import secrets
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import xxhash
from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

from sparkdist import wire
from sparkdist.errors import BadGradient, CheckpointError, DecodeError, StaleRun
from sparkdist.server.metrics import exposition
from sparkdist.server.rules import Push, model_entries
from sparkdist.server.store import Answer, Store

__all__ = ["Settings", "create_app"]

logger = logging.getLogger(__name__)

#: What the WSGI server says of a request.
Environ: TypeAlias = "dict[str, Any]"
#: What a run id, a generation and the like look like; nothing from the network names a file.
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
#: A worker waits at most so long for one answer, then asks again: no proxy cuts a request before.
LONGEST_WAIT = 20.0
#: What a frame may be longer than the dense parameters: its header.
_ROOM = wire.HEADER_LIMIT + wire.PRELUDE_BYTES
#: Asked for more bytes at once, Granian collects them in a buffer that it grows by copying.
_PIECE = 256 << 10
#: Bytes from which a copy costs more than one more message to the thread that writes.
_WORTH_TWO_WRITES = 256 << 10
_STATUS = {"wait": 503, "ahead": 409, "stale": 409, "conflict": 409}


@dataclass(frozen=True)
class Settings:
    """What the routes need to know."""

    token: str = field(repr=False)
    #: Values of the Host header that are answered; a web page that was tricked here has another.
    hosts: frozenset[str]
    layout: Any
    dtype: str
    body_limit: int


class Refusal(Exception):
    """An answer other than 200, as a status and what it says."""

    def __init__(self, status: int, error: str, message: str):
        super().__init__(message)
        self.status, self.error, self.message = status, error, message


class _Lean(Flask):
    """Flask without what these routes do not use: 30 us of a short request, of 110."""

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return a view as it is: none is a coroutine."""
        return func

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """Bind a request's path and method; there are no host names and no subdomains in routes."""
        if request is None:
            return None
        environ = request.environ
        method, path = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        query, scheme = environ.get("QUERY_STRING", ""), environ["wsgi.url_scheme"]
        return MapAdapter(self.url_map, "server", "/", "", scheme, path, method, query)


def create_app(store: Store, settings: Settings) -> Flask:
    """Make the WSGI application of a store."""
    app = _Lean("sparkdist.server", static_folder=None)
    app.config.update(DEBUG=False, TESTING=False, PROPAGATE_EXCEPTIONS=False)
    routes = Routes(store, settings)
    app.before_request(routes.guard)
    for rule, view in (
        ("/healthz", routes.healthz),
        ("/readyz", routes.readyz),
        ("/metrics", routes.metrics),
        ("/v1/status", routes.status),
        ("/v1/model", routes.model),
    ):
        app.add_url_rule(rule, view_func=view, methods=["GET"], provide_automatic_options=False)
    for view in (routes.join, routes.pull, routes.push, routes.leave):
        rule = f"/v1/{view.__name__}"
        app.add_url_rule(rule, view_func=view, methods=["POST"], provide_automatic_options=False)
    _handle_errors(app, store)
    return app


class Routes:
    """The views: one method a route."""

    def __init__(self, store: Store, settings: Settings):
        self._store, self._settings = store, settings
        self._entries = model_entries(settings.layout, settings.dtype)
        self._authorization = f"Bearer {settings.token}".encode()

    def guard(self) -> None:
        """Refuse web pages, and everybody without the token, before a body is read."""
        environ = request.environ
        _refuse_web_pages(environ, self._settings.hosts)
        if request.endpoint != "healthz":
            _refuse_wrong_token(environ, self._authorization)

    def healthz(self) -> Response:
        """Say that the process is alive; needs no token."""
        return _json(200, {"alive": True})

    def readyz(self) -> Response:
        """Say whether pushes are accepted, and checkpoints written."""
        ready = self._store.status()["ready"]
        return _json(200 if ready else 503, {"ready": ready})

    def metrics(self) -> Response:
        """Give the books to Prometheus."""
        text = exposition(self._store.status())
        return Response(text, content_type="text/plain; version=0.0.4; charset=utf-8")

    def status(self) -> Response:
        """Give the books as JSON."""
        return _json(200, self._store.status())

    def model(self) -> Response:
        """Give the parameters to anybody with the token, at once."""
        version, w = self._store.parameters()
        return _frame(200, [wire.encode({"version": version}, self._entries, [w])])

    def join(self) -> Response:
        """Tell a worker at which clock it goes on."""
        fields = _fields(_body(request.environ, _ROOM))
        answer = self._store.join(_run(fields), _count(fields, "partition"))
        return self._answer(answer)

    def pull(self) -> Response:
        """Give a worker the parameters when the policy lets it have them."""
        fields = _fields(_body(request.environ, _ROOM))
        wait = min(_number(fields, "wait", 0.0), LONGEST_WAIT)
        return self._answer(self._store.pull(_run(fields), _count(fields, "partition"), wait))

    def leave(self) -> Response:
        """Stop waiting for a worker."""
        fields = _fields(_body(request.environ, _ROOM))
        return self._answer(self._store.leave(_run(fields), _count(fields, "partition")))

    def push(self) -> Response:
        """Count a gradient once; the answer carries the next parameters if they are wanted."""
        message = wire.decode(_body(request.environ, self._settings.body_limit))
        fields = message.fields
        run, partition = _run(fields), _count(fields, "partition")
        clock = _count(fields, "clock")
        try:
            gradient = self._store.rule.admit(message)
        except BadGradient as error:
            answer = self._store.reject(run, partition, clock, error.reason)
            if answer is None:
                said = f"partition {partition}, push {clock}: {error}"
                raise BadGradient(said, error.reason) from None
            return self._answer(answer)
        pushed = Push(
            partition,
            clock,
            _count(fields, "base"),
            _id(fields, "generation"),
            gradient,
            xxhash.xxh3_64_intdigest(message.payload),
            _weight(fields),
            _count(fields, "examples", 0),
            None if fields.get("loss") is None else _number(fields, "loss", 0.0),
        )
        wait = min(_number(fields, "wait", 0.0), LONGEST_WAIT)
        want = fields.get("want") is True
        return self._answer(self._store.push(run, pushed, want=want, timeout=wait))

    def _answer(self, answer: Answer) -> Response:
        fields = {name: value for name, value in answer._asdict().items() if name != "w"}
        status = _STATUS.get(answer.status, 200)
        if answer.w is None:
            return _frame(status, wire.pieces(fields))
        head, *_ = wire.pieces(fields, self._entries, [answer.w])
        return _frame(status, [head, answer.w])  # bytes, which Granian takes, and no view of them


# --- what comes in ----------------------------------------------------------------------------


def _refuse_web_pages(environ: Environ, hosts: frozenset[str]) -> None:
    """Refuse what a browser sends on behalf of a page: loopback is no boundary to it."""
    if "HTTP_ORIGIN" in environ:
        raise Refusal(403, "origin", "requests of web pages are not answered")
    if environ.get("HTTP_HOST", "") not in hosts:
        raise Refusal(400, "host", "the Host header is not this server's address")


def _refuse_wrong_token(environ: Environ, authorization: bytes) -> None:
    given = environ.get("HTTP_AUTHORIZATION", "").encode("utf-8", "replace")
    if not hmac.compare_digest(given, authorization):
        raise Refusal(401, "token", "this run's token is missing or wrong")


def _body(environ: Environ, limit: int) -> bytes:
    """Read the body, if it says how long it is, is not too long, and is as long as it says."""
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != wire.CONTENT_TYPE:
        raise Refusal(415, "type", f"the body must be {wire.CONTENT_TYPE}")
    if "HTTP_CONTENT_ENCODING" in environ:
        raise Refusal(415, "encoding", "the body must not be compressed")
    said = environ.get("CONTENT_LENGTH")
    if "HTTP_TRANSFER_ENCODING" in environ or said is None:
        raise Refusal(411, "length", "the body must come with its Content-Length")
    # What is no length is read as 0, and no frame has 0 bytes; int() refuses thousands of digits.
    length = int(said[:20]) if said.isascii() and said.isdigit() else 0
    if length > limit:
        raise Refusal(413, "too_large", f"the body is longer than {limit} bytes")
    pieces, came, read = list[bytes](), 0, environ["wsgi.input"].read
    while came < length and (piece := read(min(_PIECE, length - came))):
        pieces.append(piece)
        came += len(piece)
    if came != length:
        raise DecodeError(f"{came} of {length} bytes came")
    return b"".join(pieces)


def _fields(body: bytes) -> dict[str, Any]:
    message = wire.decode(body)
    if message.entries:
        raise DecodeError("no arrays are expected here")
    return message.fields


def _id(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise DecodeError(f"{name} must be 1 to 64 of A-Z a-z 0-9 _ -")
    return value


def _run(fields: dict[str, Any]) -> str:
    return _id(fields, "run")


def _count(fields: dict[str, Any], name: str, default: int | None = None) -> int:
    value = fields.get(name, default)
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise DecodeError(f"{name} must be an integer from 0 to 2^53")
    return value


def _number(fields: dict[str, Any], name: str, default: float) -> float:
    value = fields.get(name, default)
    if type(value) not in (int, float) or abs(value) > 1e300:
        raise DecodeError(f"{name} must be a finite number")
    return float(value)


def _weight(fields: dict[str, Any]) -> float:
    value = _number(fields, "weight", 1.0)
    if value < 0:  # it would turn descent into ascent
        raise DecodeError("weight must not be negative")
    return value


# --- what goes out ----------------------------------------------------------------------------


class _Frame(Response):
    """An answer whose headers are right as they are: werkzeug need not look at them again."""

    def __call__(self, environ: Environ, start_response: Any) -> Any:
        """Hand the frame to the WSGI server, a short one in one piece."""
        if environ["REQUEST_METHOD"] != "POST":
            return super().__call__(environ, start_response)
        start_response(self.status, self.headers.to_wsgi_list())
        return self.response


def _frame(status: int, pieces: Sequence[Any]) -> Response:
    response = _Frame(status=status, content_type=wire.CONTENT_TYPE, direct_passthrough=True)
    response.content_length = length = sum(map(len, pieces))
    # Granian joins a list, and copies what it is given: a long frame goes as header and payload.
    response.response = [b"".join(pieces)] if length < _WORTH_TWO_WRITES else tuple(pieces)
    return response


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(json.dumps(content), status, content_type="application/json")


def _handle_errors(app: Flask, store: Store) -> None:
    """Answer every exception with JSON: what is wrong with a request, or an id of our own fault."""

    def plain(status: int, error: str) -> Callable[[Exception], Response]:
        return lambda exception: _json(status, {"error": error, "message": str(exception)})

    app.register_error_handler(DecodeError, plain(400, "frame"))
    app.register_error_handler(StaleRun, plain(409, "run"))
    app.register_error_handler(BadGradient, plain(422, "gradient"))
    app.register_error_handler(CheckpointError, plain(507, "checkpoint"))

    @app.errorhandler(Refusal)
    def refuse(refusal: Refusal) -> Response:
        return _json(refusal.status, {"error": refusal.error, "message": refusal.message})

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        return _json(error.code or 500, {"error": "http", "message": error.name})

    @app.errorhandler(Exception)
    def fault(error: Exception) -> Response:
        mark = secrets.token_hex(4)
        logger.exception("error %s while answering %s", mark, request.path)
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        store.fault = f"error {mark} on the model server:\n{''.join(lines)}"
        return _json(500, {"error": "fault", "message": f"an error on the server, id {mark}"})
