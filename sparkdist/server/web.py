"""Web: Flask as the model server needs it; guards, answers and errors of every route."""

from __future__ import annotations

import json
import logging
import secrets
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

from sparkdist import wire
from sparkdist.errors import BadGradient, CheckpointError, DecodeError, StaleRun
from sparkdist.server.incoming import Environ, Refusal, refuse_web_pages, refuse_wrong_token

__all__ = ["View", "as_json", "frame", "make_app"]

logger = logging.getLogger(__name__)

#: Bytes from which a copy costs more than one more message to the thread that writes.
_WORTH_TWO_WRITES = 256 << 10


View: TypeAlias = Callable[[], Response]


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


def make_app(
    token: str,
    hosts: frozenset[str],
    get: dict[str, View],
    post: dict[str, View],
    tell_fault: Callable[[str], None],
) -> Flask:
    """Make the WSGI application of some views.

    Parameters
    ----------
    token
        Whoever does not bring it gets an answer of ``/healthz`` alone.
    hosts
        Values of the Host header that are answered; a web page that was tricked here has another.
    get, post
        The views by their rules.
    tell_fault
        Told the traceback of an exception that is nobody's but ours, or the user's descent's.
    """
    app = _Lean("sparkdist.server", static_folder=None)
    app.config.update(DEBUG=False, TESTING=False, PROPAGATE_EXCEPTIONS=False)
    authorization = f"Bearer {token}".encode()

    @app.before_request
    def guard() -> None:
        """Refuse web pages, and everybody without the token, before a body is read."""
        refuse_web_pages(request.environ, hosts)
        if request.endpoint != "/healthz":
            refuse_wrong_token(request.environ, authorization)

    for method, views in (("GET", get), ("POST", post)):
        for rule, view in views.items():
            app.add_url_rule(rule, rule, view, methods=[method], provide_automatic_options=False)
    _answer_errors(app, tell_fault)
    return app


class _Frame(Response):
    """An answer whose headers are right as they are: werkzeug need not look at them again."""

    def __call__(self, environ: Environ, start_response: Any) -> Any:
        """Hand the frame to the WSGI server, a short one in one piece."""
        if environ["REQUEST_METHOD"] != "POST":
            return super().__call__(environ, start_response)
        start_response(self.status, self.headers.to_wsgi_list())
        return self.response


def frame(status: int, pieces: Sequence[Any]) -> Response:
    """Answer with a frame."""
    response = _Frame(status=status, content_type=wire.CONTENT_TYPE, direct_passthrough=True)
    response.content_length = length = sum(map(len, pieces))
    # Granian joins a list, and copies what it is given: a long frame goes as header and payload.
    response.response = [b"".join(pieces)] if length < _WORTH_TWO_WRITES else tuple(pieces)
    return response


def as_json(status: int, content: dict[str, Any]) -> Response:
    """Answer with JSON."""
    return Response(json.dumps(content), status, content_type="application/json")


def _answer_errors(app: Flask, tell: Callable[[str], None]) -> None:
    """Answer every exception with JSON: what is wrong with a request, or an id of our own fault."""

    def plain(status: int, error: str) -> Callable[[Exception], Response]:
        return lambda exception: as_json(status, {"error": error, "message": str(exception)})

    app.register_error_handler(DecodeError, plain(400, "frame"))
    app.register_error_handler(StaleRun, plain(409, "run"))
    app.register_error_handler(BadGradient, plain(422, "gradient"))
    app.register_error_handler(CheckpointError, plain(507, "checkpoint"))

    @app.errorhandler(Refusal)
    def refuse(refusal: Refusal) -> Response:
        said = as_json(refusal.status, {"error": refusal.error, "message": refusal.message})
        if refusal.status == 503:
            said.headers["Retry-After"] = "1"
        return said

    @app.errorhandler(HTTPException)
    def http(error: HTTPException) -> Response:
        return as_json(error.code or 500, {"error": "http", "message": error.name})

    @app.errorhandler(Exception)
    def fault(error: Exception) -> Response:
        mark = secrets.token_hex(4)
        logger.exception("error %s while answering %s", mark, request.path)
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        tell(f"error {mark} on the model server:\n{''.join(lines)}")
        return as_json(500, {"error": "fault", "message": f"an error on the server, id {mark}"})
