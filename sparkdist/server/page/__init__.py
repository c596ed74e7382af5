"""Page: the live page of a run, whose files are the same for everybody and hold no data.

The data the page asks for itself, at ``/v1/status``, with a token that it finds behind the ``#`` of
its address: browsers keep that part to themselves, so that it is in no request, no log and no
Referer.  It is not the token of the workers but one made of it, with which the books can be
read and nothing else: who finds it in a notebook or in a browser's history cannot train with it.
"""

from __future__ import annotations

import functools
import hmac
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from flask import Response

__all__ = ["HEADERS", "OPEN", "READABLE", "address", "reading_token", "views"]

_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
#: Paths for which no token is needed.
OPEN = frozenset(_FILES)
#: Paths for which the reading token is enough.
READABLE = frozenset({"/v1/status"})
_POLICY = {
    "default-src": "'none'",
    **dict.fromkeys(("script-src", "style-src", "img-src", "connect-src"), "'self'"),
    **dict.fromkeys(("base-uri", "form-action", "frame-ancestors"), "'none'"),
    "require-trusted-types-for": "'script'",
}
#: The page may load and ask this server only, and no other page may load it or frame it.
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def reading_token(token: str) -> str:
    """Make the token with which a server's books can be read; the other cannot be made of it.

    HMAC-SHA-256, RFC 2104.
    """
    return hmac.new(token.encode(), b"sparkdist: read", "sha256").hexdigest()


def address(host: str, port: int, token: str | None = None, *, tls: bool = False) -> str:
    """Return the page's address: with the run's ``token`` one that opens it, else one for logs."""
    name = f"[{host}]" if ":" in host else host
    behind = "" if token is None else f"#token={reading_token(token)}"
    return f"{'https' if tls else 'http'}://{name}:{port}/{behind}"


def views() -> dict[str, Callable[[dict[str, Any]], Response]]:
    """Return the views of the files by their paths."""
    folder = files(__name__)
    return {
        path: functools.partial(_give, (folder / name).read_bytes(), kind)
        for path, (name, kind) in _FILES.items()
    }


def _give(content: bytes, kind: str, environ: dict[str, Any]) -> Response:
    return Response(content, content_type=kind, headers=HEADERS)
