"""Web: Flask as the model server needs it; guards, answers and errors of every route."""

from __future__ import annotations

import json
import logging
import secrets
import traceback
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeAlias

from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException
from werkzeug.routing import MapAdapter

from sparkdist import wire
from sparkdist.errors import BadGradient, CheckpointError, DecodeError, StaleRun
from sparkdist.server import page
from sparkdist.server.http.answer import Application
from sparkdist.server.incoming import Environ, Refusal, refuse_web_pages, refuse_wrong_token

__all__ = ["Application", "View", "as_json", "frame", "make_app"]

logger = logging.getLogger(__name__)

#: What an exception says of a request.
_MEANINGS: dict[type[Exception], tuple[int, str]] = {
    DecodeError: (400, "frame"),
    StaleRun: (409, "run"),
    BadGradient: (422, "gradient"),
    CheckpointError: (507, "checkpoint"),
}
#: What needs no token.
_OPEN = page.OPEN | {"/healthz"}
_STATUS_LINES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}

#: A view gets what the WSGI server says of the request, and returns the answer or raises; the
#: answer is called as an application, which each of Flask's responses is.
View: TypeAlias = Callable[[Environ], Application]


class _Lean(Flask):
    """Flask, but for the routes of the workers: their requests go straight to their views.

    Flask's contexts, matching and signals take half of the time of a short request; what these
    routes need of them, the guards and the answers to errors, they get here as well.
    """

    short_cuts: dict[str, View]

    def wsgi_app(self, environ: Environ, start_response: Any) -> Any:
        """Answer a request."""
        view = self.short_cuts.get(environ["PATH_INFO"])
        if view is None or environ["REQUEST_METHOD"] != "POST":
            return super().wsgi_app(environ, start_response)
        return view(environ)(environ, start_response)

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
    get: Mapping[str, View],
    post: Mapping[str, View],
    tell_fault: Callable[[str], None],
) -> Flask:
    """Make the WSGI application of some views.

    Parameters
    ----------
    token
        Whoever does not bring it gets ``/healthz`` and the files of the live page, which hold no
        data; whoever brings the reading token made of it the books, too.
    hosts
        Values of the Host header that are answered; a web page that was tricked here has another.
    get, post
        The views by their rules.
    tell_fault
        Told the traceback of an exception that is nobody's but ours, or the user's descent's.
    """
    app, gate = _Lean("sparkdist.server", static_folder=None), _Gate(token, hosts, tell_fault)
    app.config.update(DEBUG=False, TESTING=False, PROPAGATE_EXCEPTIONS=False)
    for method, views in (("GET", get), ("POST", post)):
        for rule, view in views.items():
            app.add_url_rule(
                rule, rule, _in_flask(view), methods=[method], provide_automatic_options=False
            )
    app.short_cuts = {rule: gate.shield(rule, view) for rule, view in post.items()}
    app.before_request(lambda: gate.refuse(request.environ, request.endpoint))
    app.register_error_handler(Exception, lambda error: gate.explain(error, request.environ))
    return app


def _in_flask(view: View) -> Callable[[], Any]:
    return lambda: view(request.environ)


class _Gate:
    """What stands before every view, and what becomes of its exceptions."""

    def __init__(self, token: str, hosts: frozenset[str], tell_fault: Callable[[str], None]):
        self._all, self._reading = (
            f"Bearer {known}".encode() for known in (token, page.reading_token(token))
        )
        self._hosts, self._tell_fault = hosts, tell_fault

    def refuse(self, environ: Environ, rule: str | None) -> None:
        """Refuse web pages, and everybody without the token, before a body is read."""
        refuse_web_pages(environ, self._hosts)
        if rule in page.READABLE:
            refuse_wrong_token(environ, self._all, self._reading)
        elif rule not in _OPEN:
            refuse_wrong_token(environ, self._all)

    def shield(self, rule: str, view: View) -> View:
        """Put the gate before a view that Flask does not call."""

        def shielded(environ: Environ) -> Application:
            try:
                self.refuse(environ, rule)
                return view(environ)
            except Exception as error:
                return self.explain(error, environ)

        return shielded

    def explain(self, error: Exception, environ: Environ) -> Response:
        """Answer an exception: what is wrong with a request, or an id of our own fault."""
        if isinstance(error, Refusal):
            said = as_json(error.status, {"error": error.error, "message": error.message})
            if error.status == 503:
                said.headers["Retry-After"] = "1"
            return said
        if isinstance(error, HTTPException):
            return as_json(error.code or 500, {"error": "http", "message": error.name})
        for kind, (status, name) in _MEANINGS.items():
            if isinstance(error, kind):
                return as_json(status, {"error": name, "message": str(error)})
        mark = secrets.token_hex(4)
        logger.error("error %s while answering %s", mark, environ["PATH_INFO"], exc_info=error)
        lines = traceback.format_exception(type(error), error, error.__traceback__)
        self._tell_fault(f"error {mark} on the model server:\n{''.join(lines)}")
        return as_json(500, {"error": "fault", "message": f"an error on the server, id {mark}"})


def frame(status: int, pieces: Sequence[Any]) -> Application:
    """Answer with a frame: two headers, at which werkzeug need not look, and its buffers."""
    length = sum(map(len, pieces))
    headers = [("Content-Type", wire.CONTENT_TYPE), ("Content-Length", str(length))]

    def answer(environ: Environ, start_response: Any) -> Any:
        start_response(_STATUS_LINES[status], headers)
        return pieces

    return answer


def as_json(status: int, content: dict[str, Any]) -> Response:
    """Answer with JSON."""
    return Response(json.dumps(content), status, content_type="application/json")
