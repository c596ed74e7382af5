"""Incoming: what a request must be like before anything is done with it."""

from __future__ import annotations

import hmac
import re
import threading
from typing import Any, TypeAlias

import numpy as np

from sparkdist import wire
from sparkdist.errors import DecodeError

__all__ = [
    "Budget",
    "Environ",
    "Refusal",
    "count",
    "identifier",
    "number",
    "read_body",
    "read_fields",
    "refuse_web_pages",
    "refuse_wrong_token",
    "weight",
]

#: What the WSGI server says of a request.
Environ: TypeAlias = "dict[str, Any]"
#: What a run id, a generation and the like look like; nothing from the network names a file.
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Refusal(Exception):
    """An answer other than 200, as a status and what it says."""

    def __init__(self, status: int, error: str, message: str):
        super().__init__(message)
        self.status, self.error, self.message = status, error, message


class Budget:
    """Bytes of bodies that may be in memory at the same time.

    Parameters
    ----------
    limit
        Beyond it a body is not read: its client is told to come back, 503.
    """

    def __init__(self, limit: int):
        self._left, self._lock = limit, threading.Lock()

    def take(self, environ: Environ, limit: int) -> int:
        """Take the room of a request's body, of which at most ``limit`` bytes will be read."""
        n_bytes = min(_length(environ) or 0, limit)
        with self._lock:
            if n_bytes > self._left:
                raise Refusal(
                    503, "busy", "there are enough bodies in memory; come back in a second"
                )
            self._left -= n_bytes
        return n_bytes

    def give_back(self, n_bytes: int) -> None:
        """Give room back."""
        with self._lock:
            self._left += n_bytes


def refuse_web_pages(environ: Environ, hosts: frozenset[str]) -> None:
    """Refuse what a browser sends on behalf of a page: loopback is no boundary to it."""
    if "HTTP_ORIGIN" in environ:
        raise Refusal(403, "origin", "requests of web pages are not answered")
    if environ.get("HTTP_HOST", "") not in hosts:
        raise Refusal(400, "host", "the Host header is not this server's address")


def refuse_wrong_token(environ: Environ, *right: bytes) -> None:
    """Refuse a request with none of the tokens that are right here.

    A comparison takes the same time whatever is given.
    """
    given = environ.get("HTTP_AUTHORIZATION", "").encode("utf-8", "replace")
    if not any([hmac.compare_digest(given, authorization) for authorization in right]):
        raise Refusal(401, "token", "this run's token is missing or wrong")


def read_body(environ: Environ, limit: int) -> memoryview[Any]:
    """Read the body, if it says how long it is, is not too long, and is as long as it says."""
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != wire.CONTENT_TYPE:
        raise Refusal(415, "type", f"the body must be {wire.CONTENT_TYPE}")
    if "HTTP_CONTENT_ENCODING" in environ:
        raise Refusal(415, "encoding", "the body must not be compressed")
    length = _length(environ)
    if "HTTP_TRANSFER_ENCODING" in environ or length is None:
        raise Refusal(411, "length", "the body must come with its Content-Length")
    if length > limit:
        raise Refusal(413, "too_large", f"the body is longer than {limit} bytes")
    # Memory is taken as it is written to, and nothing is copied: the socket fills it.
    body, came, read = np.empty(length, np.uint8).data, 0, environ["wsgi.input"].readinto
    while came < length and (n := read(body[came:])):
        came += n
    if came != length:
        raise DecodeError(f"{came} of {length} bytes came")
    return body


def _length(environ: Environ) -> int | None:
    """Content-Length; 0, which no frame has, where it is no length."""
    said = environ.get("CONTENT_LENGTH")
    if said is None:
        return None
    # int() refuses thousands of digits.
    return int(said[:20]) if said.isascii() and said.isdigit() else 0


def read_fields(body: bytes | memoryview[Any]) -> dict[str, Any]:
    """Read the fields of a body that has no arrays."""
    message = wire.decode(body)
    if message.entries:
        raise DecodeError("no arrays are expected here")
    return message.fields


def identifier(fields: dict[str, Any], name: str) -> str:
    """Read an identifier."""
    value = fields.get(name)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise DecodeError(f"{name} must be 1 to 64 of A-Z a-z 0-9 _ -")
    return value


def count(fields: dict[str, Any], name: str, default: int | None = None) -> int:
    """Read an integer from 0 on."""
    value = fields.get(name, default)
    if type(value) is not int or not 0 <= value < 1 << 53:
        raise DecodeError(f"{name} must be an integer from 0 to 2^53")
    return value


def number(fields: dict[str, Any], name: str, default: float) -> float:
    """Read a finite number."""
    value = fields.get(name, default)
    if type(value) not in (int, float) or abs(value) > wire.MOST:
        raise DecodeError(f"{name} must be a finite number")
    return float(value)


def weight(fields: dict[str, Any]) -> float:
    """Read the weight of a push."""
    value = number(fields, "weight", 1.0)
    if value < 0:  # it would turn descent into ascent
        raise DecodeError("weight must not be negative")
    return value
