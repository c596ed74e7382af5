"""Head: a request's first lines, read by llhttp, to what WSGI says of a request (PEP 3333)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote_to_bytes

from httptools import (
    HttpParserError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    parse_url,
)

__all__ = ["BadHead", "Head", "end_of_head", "read_head"]

#: Longest head, and most headers in it.
HEAD_LIMIT, _MOST_HEADERS = 32 << 10, 100
#: The empty line behind a head.  A single LF ends a line too, for llhttp to refuse it.
_END = re.compile(rb"\n\r?\n")
#: Said twice, one of them is a lie.
_ONCE = {"HTTP_HOST", "HTTP_AUTHORIZATION", "CONTENT_TYPE", "CONTENT_LENGTH"}


class BadHead(Exception):
    """What came is no head of HTTP/1.1, or nobody can say for sure where its request ends."""

    def __init__(self, why: str, status: str = "400 Bad Request"):
        super().__init__(why)
        self.status = status


class Head(NamedTuple):
    """What a head says."""

    environ: dict[str, Any]
    #: Bytes of the body that follows.
    length: int
    #: Whether the client wants to go on on this connection, and we can tell where the body ends.
    keep_alive: bool
    #: Whether the client waits to be told that its body is wanted.
    expects_continue: bool


def end_of_head(received: bytes, start: int = 0) -> int | None:
    """Return where the head ends, empty line included, if it lies behind ``start``.

    Raises
    ------
    BadHead
        If it is too long, whether or not it ends.
    """
    found = _END.search(received, max(0, start - 2))
    end = found.end() if found else None
    if (end or len(received)) > HEAD_LIMIT:
        raise BadHead(f"more than {HEAD_LIMIT} bytes", "431 Request Header Fields Too Large")
    return end


def read_head(head: bytes, environ: Mapping[str, Any]) -> Head:
    """Read a head; ``environ`` is what is the same for all requests.

    Raises
    ------
    BadHead
        For all that llhttp refuses, and for a header that may be there once and is there twice.
    """
    reader = _Reader(dict(environ))
    parser = HttpRequestParser(reader)
    try:
        parser.feed_data(head)
    except HttpParserUpgrade:
        pass  # an offer, which a server may pass over (RFC 9110, 7.8)
    except HttpParserError as error:
        raise BadHead(reader.why or str(error)) from None
    if reader.heads != 1:  # llhttp has always agreed with end_of_head so far
        raise BadHead("the head does not end where its empty line is")
    found = reader.environ
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise BadHead(f"version {version}")
    method = parser.get_method()
    if method == b"CONNECT":
        raise BadHead("no tunnels")
    if not head.startswith(b"%b %b HTTP/" % (method, reader.target)):
        raise BadHead("the parts of the first line have one space between")
    found["REQUEST_METHOD"] = method.decode("latin-1")
    found["SERVER_PROTOCOL"] = f"HTTP/{version}"
    _read_target(reader.target, found)
    length = found.get("CONTENT_LENGTH", "0")
    if len(length) > 19:  # beyond 64 bits, or with zeros before
        raise BadHead(f"a length of {len(length)} digits")
    closes = "close" in found.get("HTTP_CONNECTION", "").lower().replace(",", " ").split()
    return Head(
        found,
        int(length),
        version == "1.1" and not closes and "HTTP_TRANSFER_ENCODING" not in found,
        version == "1.1" and found.get("HTTP_EXPECT", "").lower() == "100-continue",
    )


def _read_target(target: bytes, environ: dict[str, Any]) -> None:
    """Read path, without escapes, and query, both as WSGI wants them: bytes as Latin-1.

    A whole address names its host, too, whatever the header says (RFC 9112, 3.2.2).
    """
    try:
        url = parse_url(target)
    except HttpParserInvalidURLError:
        url = None
    if url is None or url.path is None or url.fragment is not None:
        raise BadHead(f"no path of a request: {target!r:.80}")
    if url.schema is not None:
        if url.schema.lower() not in (b"http", b"https") or url.userinfo is not None:
            raise BadHead(f"no address of this server: {target!r:.80}")
        environ["HTTP_HOST"] = target.split(b"/", 3)[2].partition(b"?")[0].decode("latin-1")
    environ["PATH_INFO"] = unquote_to_bytes(url.path).decode("latin-1")
    environ["QUERY_STRING"] = (url.query or b"").decode("latin-1")


class _Reader:
    """What llhttp finds, as it finds it."""

    def __init__(self, environ: dict[str, Any]):
        self.environ, self.target, self.heads, self.why = environ, b"", 0, ""
        self._n = 0

    def on_url(self, url: bytes) -> None:
        """Keep what is asked for."""
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        self._n += 1
        text = name.decode("latin-1").upper()
        if "_" in text:
            return  # to WSGI X_A and X-A are the same: nobody may say the one for the other
        key = text.replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        said = value.decode("latin-1").rstrip(" \t")  # of what is around it llhttp closes this
        if key in self.environ and key in _ONCE:
            self._refuse(f"{text} twice")
        self.environ[key] = f"{self.environ[key]}, {said}" if key in self.environ else said
        if self._n > _MOST_HEADERS:
            self._refuse(f"more than {_MOST_HEADERS} headers")

    def on_headers_complete(self) -> None:
        """Count the heads: there is to be one."""
        self.heads += 1

    def _refuse(self, why: str) -> None:
        self.why = why
        raise ValueError(why)  # llhttp stops, and httptools raises an HttpParserError
