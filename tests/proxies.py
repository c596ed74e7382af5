"""What may stand between a client and the model server: a proxy that breaks, servers that lie."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from typing import BinaryIO

__all__ = ["Answering", "BreakingProxy", "Wiretap", "read_message", "reset"]

#: Bound of every wait here: a test that would hang ends.
SECONDS = 30.0


def read_message(source: BinaryIO) -> bytes:
    """Read one request or answer, head and body; what came of it before the end, if it ends."""
    head: list[bytes] = []
    while (line := source.readline(1 << 20)) not in (b"", b"\r\n"):
        head.append(line)
    lengths = [int(line[15:]) for line in head if line.lower().startswith(b"content-length:")]
    body = source.read(lengths[0]) if line and lengths else b""
    return b"".join([*head, line, body])


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN: what the other side has not read yet is lost to it."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class _Listener:
    """Serves each connection in a thread of its own, until it is closed."""

    def __init__(self, host: str, port: int):
        self._listening = socket.create_server((host, port))
        self.host, self.port = self._listening.getsockname()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def serve(self, connection: socket.socket) -> None:
        raise NotImplementedError

    def close(self) -> None:
        # Wakes accept(), which closing alone does not.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(SECONDS)
        for connection in self._open:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # it is closed already
        for thread in self._threads:
            thread.join(SECONDS)
            assert not thread.is_alive()
        self._listening.close()

    def __enter__(self) -> _Listener:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            self._open.append(connection)
            self._threads.append(threading.Thread(target=self._guarded, args=(connection,)))
            self._threads[-1].start()

    def _guarded(self, connection: socket.socket) -> None:
        connection.settimeout(SECONDS)
        with connection:
            try:
                self.serve(connection)
            except OSError:
                return  # the other side went away, as some tests want it


class BreakingProxy(_Listener):
    """Forwards requests to a server, and keeps their bytes; some answers never arrive.

    ``breaks()`` is asked after each answer of the server: if it says so, the client's connection
    is reset in place of the answer.
    """

    def __init__(self, host: str, server: tuple[str, int], breaks: Callable[[], bool]):
        self.requests: list[bytes] = []
        self.broken = 0
        self._server, self._breaks = server, breaks
        super().__init__(host, server[1])

    def serve(self, connection: socket.socket) -> None:
        with (
            socket.create_connection(self._server, SECONDS) as onwards,
            connection.makefile("rb") as asked,
            onwards.makefile("rb") as answered,
        ):
            while request := read_message(asked):
                self.requests.append(request)
                onwards.sendall(request)
                answer = read_message(answered)
                if self._breaks():
                    self.broken += 1
                    # makefile() keeps the descriptor open: without this close() sends nothing yet.
                    asked.close()
                    reset(connection)
                    return
                connection.sendall(answer)


class Answering(_Listener):
    """Answers every request with the same bytes, and closes if they do not say how long they are.

    With ``seconds`` one byte goes out in each such span.
    """

    def __init__(self, answer: bytes, seconds: float = 0.0):
        self._answer, self._seconds = answer, seconds
        self._closing = threading.Event()
        self.asked = 0
        super().__init__("127.0.0.1", 0)

    def serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as asked:
            while read_message(asked):
                self.asked += 1
                self._send(connection)
                if b"content-length" not in self._answer.lower():
                    return

    def close(self) -> None:
        self._closing.set()
        super().close()

    def _send(self, connection: socket.socket) -> None:
        if not self._seconds:
            connection.sendall(self._answer)
            return
        for i in range(len(self._answer)):
            connection.sendall(self._answer[i : i + 1])
            if self._closing.wait(self._seconds):
                return


class Wiretap(_Listener):
    """Forwards bytes both ways, whatever they are, and keeps those of the client."""

    def __init__(self, host: str, server: tuple[str, int]):
        self.heard = bytearray()
        self._server = server
        super().__init__(host, server[1])

    def serve(self, connection: socket.socket) -> None:
        with socket.create_connection(self._server, SECONDS) as onwards:
            back = threading.Thread(target=_copy, args=(onwards, connection, bytearray()))
            back.start()
            _copy(connection, onwards, self.heard)
            back.join(SECONDS)


def _copy(source: socket.socket, target: socket.socket, kept: bytearray) -> None:
    """Copy until one of the two ends or breaks, then end the other."""
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            kept += data
            target.sendall(data)
    with contextlib.suppress(OSError):  # it went away, too
        target.shutdown(socket.SHUT_WR)
