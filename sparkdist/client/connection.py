"""Connection: HTTP/1.1 as far as the model server speaks it, on one socket that is kept.

A frame goes out as the buffers that it is made of, and an answer comes into memory that is used
again.  Measured in ``benchmarks/bench_exchange.py``.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from sparkdist.client.protocol import Address
from sparkdist.errors import DecodeError
from sparkdist.wire import CONTENT_TYPE

__all__ = ["Connection", "Reply"]

_Buffer: TypeAlias = "bytes | memoryview[Any]"

_CONNECT_SECONDS = 5.0
#: Longest head of an answer, and the first bite of one: a short answer comes in one piece.
_HEAD_LIMIT = 64 << 10
#: An answer without a frame is a sentence in JSON.
_SENTENCE_LIMIT = 64 << 10
#: Shorter answers get memory of their own: below this malloc has it at hand.
_WORTH_KEEPING = 64 << 10


class Reply(NamedTuple):
    """An answer; ``body`` is a view of memory that is used again when no view of it is left."""

    status: int
    content_type: str
    body: memoryview[Any]


class Connection:
    """One connection at a time to the model server; for one thread at a time.

    Parameters
    ----------
    address
        Where the server is.
    limit
        Bytes that an answer has at most: nothing is allocated because a longer one was announced.
    silence
        Seconds that the server may neither take nor send a byte.
    """

    def __init__(self, address: Address, limit: int, silence: float):
        self._address, self._silence = address, silence
        self._limit = max(limit, _SENTENCE_LIMIT)
        host = f"[{address.host}]" if ":" in address.host else address.host
        self._head = (
            f"Host: {host}:{address.port}\r\nAuthorization: Bearer {address.token}\r\n"
            f"Content-Type: {CONTENT_TYPE}\r\nContent-Length: "
        )
        self._tls: ssl.SSLContext | None = None
        if address.certificate is not None:
            self._tls = ssl.create_default_context(cadata=address.certificate)
        self._socket: socket.socket | None = None
        self._memory = _Memory()

    def post(self, path: str, frame: Sequence[_Buffer], deadline: float) -> Reply:
        """Send a frame and read the answer to it, all of it before ``deadline``.

        Raises
        ------
        OSError
            If there is no connection, if it breaks, or if it takes too long.
        DecodeError
            If what comes is not an answer of the model server.
        """
        n_bytes = sum(len(buffer) for buffer in frame)
        head = f"POST {path} HTTP/1.1\r\n{self._head}{n_bytes}\r\n\r\n".encode()
        try:
            self._connect(deadline)
            try:
                self._send([memoryview(head), *(memoryview(buffer) for buffer in frame)], deadline)
            except (BrokenPipeError, ConnectionResetError):
                pass  # a server that refuses a body closes, and the reason may lie here unread
            return self._receive(deadline)
        except BaseException:
            self.close()  # whatever comes late must not be taken for the next answer
            raise

    def close(self) -> None:
        """Close the connection; the next request opens another one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connect(self, deadline: float) -> None:
        if self._socket is not None:
            if not _readable(self._socket):
                return
            self.close()  # an idle connection has nothing to read but its end
        seconds = min(_CONNECT_SECONDS, _left(deadline))
        place = (self._address.host, self._address.port)
        self._socket = socket.create_connection(place, seconds)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            self._socket = self._tls.wrap_socket(self._socket, server_hostname=place[0])

    def _ready(self, deadline: float) -> socket.socket:
        """Return the socket; what is done with it now ends in time."""
        assert self._socket is not None
        self._socket.settimeout(min(self._silence, _left(deadline)))
        return self._socket

    def _send(self, views: list[memoryview[Any]], deadline: float) -> None:
        while views:
            ready = self._ready(deadline)
            n = ready.sendmsg(views) if self._tls is None else ready.send(views[0])
            while views and n >= len(views[0]):
                n -= len(views.pop(0))
            if n:
                views[0] = views[0][n:]

    def _receive(self, deadline: float) -> Reply:
        head, came = self._receive_head(deadline)
        status, headers = _parse(head)
        length = _length(headers)
        if length > self._limit:
            raise DecodeError(f"an answer of {length} bytes is over the limit of {self._limit}")
        if len(came) > length:
            raise DecodeError("more came than the answer")
        body = self._memory.take(length)
        n = len(came)
        body[:n] = came
        while n < length:
            more = self._ready(deadline).recv_into(body[n:])
            if not more:
                raise DecodeError(f"the answer ended {length - n} bytes early")
            n += more
        if headers.get("connection", "").lower() == "close":
            self.close()
        return Reply(status, headers.get("content-type", ""), body)

    def _receive_head(self, deadline: float) -> tuple[bytes, memoryview[Any]]:
        """Return the head of an answer, and what has come of its body."""
        came = b""
        while (end := came.find(b"\r\n\r\n")) < 0:
            if len(came) >= _HEAD_LIMIT:
                raise DecodeError(f"the head of the answer is longer than {_HEAD_LIMIT} bytes")
            more = self._ready(deadline).recv(_HEAD_LIMIT)
            if not more:
                raise ConnectionResetError("the connection was closed instead of an answer")
            came = came + more if came else more
        return came[:end], memoryview(came)[end + 4 :]


class _Memory:
    """The memory of the last two long answers, given again when no view of it is left.

    A fresh piece of 4 MB costs a page fault for each 4 KiB.  Two, because a worker holds its
    parameters until the next ones have come.
    """

    def __init__(self) -> None:
        self._kept: list[bytearray] = []

    def take(self, n: int) -> memoryview[Any]:
        """Return n bytes that nobody looks at."""
        if n < _WORTH_KEEPING:
            return memoryview(bytearray(n))
        for buffer in self._kept:
            if n <= len(buffer) <= 2 * n and _is_free(buffer):
                return memoryview(buffer)[:n]
        # With some room: the header of the next answer may be a little longer.
        buffer = bytearray(n + 4096)
        self._kept = [*self._kept[-1:], buffer]
        return memoryview(buffer)[:n]


def _is_free(buffer: bytearray) -> bool:
    """Whether no view of a buffer is left: Python refuses to resize it while there is one."""
    try:
        buffer.append(buffer.pop())
    except BufferError:
        return False
    return True


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time for an answer is over")
    return left


def _readable(waiting: socket.socket) -> bool:
    poll = select.poll()  # select knows no descriptor beyond 1024
    poll.register(waiting, select.POLLIN)
    return bool(poll.poll(0))


def _parse(head: bytes) -> tuple[int, dict[str, str]]:
    """Read a status line and headers, whose names come out in small letters."""
    first, *lines = head.decode("latin-1").split("\r\n")
    version, _, rest = first.partition(" ")
    status = rest[:3]
    if version != "HTTP/1.1" or not (status.isascii() and status.isdigit()) or status < "200":
        raise DecodeError(f"no answer of HTTP/1.1: {first!r:.80}")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or name.lower() in headers:
            raise DecodeError(f"a header that is none, or is there twice: {line!r:.80}")
        headers[name.lower()] = value.strip()
    return int(status), headers


def _length(headers: dict[str, str]) -> int:
    said = headers.get("content-length", "")
    if "transfer-encoding" in headers or not (said.isascii() and said.isdigit()):
        raise DecodeError("the answer does not say how long it is")
    return int(said) if len(said) < 20 else 1 << 63
