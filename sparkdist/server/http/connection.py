"""Connection: one socket; what came of the next request, and what is to be sent of an answer."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import struct
import time
from io import RawIOBase
from typing import Any

from sparkdist.server.http.answer import Application, answer_of, refusal
from sparkdist.server.http.head import BadHead, Head, end_of_head, read_head

__all__ = ["Connection"]

logger = logging.getLogger(__name__)

#: Seconds in which a head comes whole, from its first byte or the beginning of the connection.
_HEAD_SECONDS = 10.0
#: Seconds without a request after which a connection is closed; clients open another one.
_IDLE_SECONDS = 300.0
#: Seconds in which not one byte of a body comes, or of an answer is taken.  A body holds a thread:
#: the supervisor has to find one that is free within its five looks, 15 s.
_SILENCE = 8.0
#: Seconds for a client to read why it was refused: closing at once, with bytes of it unread, would
#: take the answer back (RFC 9112, 9.6).
_LINGER_SECONDS = 2.0
#: What a plain socket's calls block, as a timeval: 5 ms.  The next request of a busy client comes
#: sooner; its thread is spared two calls of the kernel, at each of which it may lose the GIL.
_STAY = struct.pack("ll", 0, 5000)
#: A head and a short body come in one bite; what is longer goes to the memory that is meant for it.
_RECV_BYTES = 64 << 10
#: An answer is sent for so many seconds in a turn.
_SEND_SECONDS = 0.02
#: Longer heads are forgotten: a silent connection would hold them.
_SHORT_HEAD = 2048
#: Buffers that one call may send (Linux and macOS).
_IOV_MAX = 1024
_CONTINUE = memoryview(b"HTTP/1.1 100 Continue\r\n\r\n")


class Connection:
    """A socket, and all that is known of its client.

    Nobody is waited for but a client whose body the application reads, which it does not do for
    strangers: whoever drips a head, or does not read answers, is left until there is more to do.

    Parameters
    ----------
    connected
        The socket; a TLS one without its handshake.
    environ
        What WSGI says of all its requests.
    """

    def __init__(self, connected: socket.socket, environ: dict[str, Any]):
        self._socket, self._environ = connected, environ
        self._tls = connected if isinstance(connected, ssl.SSLSocket) else None
        if self._tls is None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _STAY)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _STAY)
        else:
            connected.setblocking(False)
        self._shakes_hands = self._tls is not None
        self._received, self._searched, self._unsent = b"", 0, list[memoryview]()
        self._last_head: tuple[bytes, Head] | None = None
        #: Answered and nothing come since; the answer is the last one; it is sent, and all that
        #: comes is passed over.
        self._idle = self._leaves = self._lingers = False
        #: The application has read the last request's body to its end.
        self._known_client = False
        #: When this is over, and no thread is at work on it, it may be closed.
        self.deadline = time.monotonic() + _HEAD_SECONDS

    def on_ready(self, app: Application) -> int:
        """Do what can be done now; returns for what to poll before the next turn, 0 for the end.

        A turn has one answer, and ends: others are at the poll.  Only with a client whose body the
        application has read, which is no stranger, it stays for the next request.

        Raises
        ------
        OSError
            If the connection broke.
        """
        if time.monotonic() > self.deadline:
            return 0
        try:
            return self._turn(app)
        except BlockingIOError:
            return select.POLLOUT if self._unsent else select.POLLIN
        except ssl.SSLWantReadError:
            return select.POLLIN
        except ssl.SSLWantWriteError:
            return select.POLLOUT

    def _turn(self, app: Application) -> int:
        if self._shakes_hands and self._tls is not None:
            self._tls.do_handshake()
            self._shakes_hands = False
        self._send()
        answered = self._answer(app)  # a request that came with the one before
        while not answered or self._stays:
            if not (more := self._receive(wait=answered)):
                return 0
            self._take(more)
            if not (answered := self._answer(app)):
                break
        # What has come already no poll tells of.
        at_once = (answered and self._received) or (self._tls is not None and self._tls.pending())
        return select.POLLOUT if at_once else select.POLLIN

    def _receive(self, wait: bool) -> bytes:
        if self._tls is not None:
            return self._tls.recv(_RECV_BYTES)
        return self._socket.recv(_RECV_BYTES, 0 if wait else socket.MSG_DONTWAIT)

    @property
    def _stays(self) -> bool:
        """Whether the client may be back at once, and may have a thread that waits for that."""
        return self._tls is None and self._idle and self._known_client

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def invite(self) -> None:
        """Tell the client that its body is wanted."""
        n = 0
        with contextlib.suppress(OSError):
            n = self._socket.send(_CONTINUE)
        if n < len(_CONTINUE):
            self._unsent.append(_CONTINUE[n:])

    def receive(self, view: memoryview) -> int:
        """Receive some bytes of a body; 0 if none will come."""
        while True:
            waits_for = select.POLLIN
            try:
                return self._socket.recv_into(view)
            except (BlockingIOError, ssl.SSLWantReadError):
                pass
            except ssl.SSLWantWriteError:
                waits_for = select.POLLOUT
            except OSError:
                return 0
            poll = select.poll()
            poll.register(self._socket, waits_for)
            if not poll.poll(1000 * _SILENCE):
                return 0

    def _take(self, more: bytes) -> None:
        """Keep what came."""
        if self._idle:
            self._idle, self.deadline = False, time.monotonic() + _HEAD_SECONDS
        if not self._lingers:
            # Empty lines before a request are passed over (RFC 9112, 2.2).
            self._received = self._received + more if self._received else more.lstrip(b"\r\n")

    def _answer(self, app: Application) -> bool:
        """Answer the next request, if its head is whole."""
        if self._lingers:
            return False
        try:
            end = end_of_head(self._received, self._searched) if self._received else None
            if end is None:
                self._searched = len(self._received)
                return False
            head = self._read_head(self._received[:end])
        except BadHead as error:
            # Not INFO, which the process writes to a file: strangers could fill the disk.
            logger.debug("a request was refused: %s", error)
            self._refuse(error.status)
            self._send()
            return True
        received = memoryview(self._received)[end:]
        body = _Body(self, received[: head.length], head.length, head.expects_continue)
        try:
            answer = answer_of(app, {**head.environ, "wsgi.input": body})
            self._leaves = not head.keep_alive or body.is_to_come
            self._say(answer(not self._leaves))
        except BaseException:  # SystemExit, too, is not for the thread that answers
            logger.exception("the application failed")
            self._refuse("500 Internal Server Error")
        self._received, self._searched = bytes(received[head.length :]).lstrip(b"\r\n"), 0
        self._known_client = head.length > 0 and body.is_read
        self._send()
        return True

    def _read_head(self, head: bytes) -> Head:
        """Read a head; that of a worker's next push is the same, byte for byte."""
        if len(head) > _SHORT_HEAD:
            return read_head(head, self._environ)
        if self._last_head is None or self._last_head[0] != head:
            self._last_head = head, read_head(head, self._environ)
        return self._last_head[1]

    def _refuse(self, status: str) -> None:
        self._say(refusal(status))
        self._leaves = True

    def _say(self, parts: list[memoryview]) -> None:
        """Have something to send; the application may have taken longer than a head may."""
        self._unsent += parts
        self.deadline = time.monotonic() + _SILENCE

    def _send(self) -> None:
        """Send what there is to send; when nothing is left of it, see how it goes on."""
        if not self._unsent:
            return
        until = time.monotonic() + _SEND_SECONDS
        while self._unsent:
            if self._tls is None:
                n = self._socket.sendmsg(self._unsent[:_IOV_MAX])
            else:
                n = self._tls.send(self._unsent[0])
            while self._unsent and n >= len(self._unsent[0]):
                n -= len(self._unsent.pop(0))
            if n:
                self._unsent[0] = self._unsent[0][n:]
            now = time.monotonic()
            self.deadline = now + _SILENCE
            if self._unsent and now > until:
                raise BlockingIOError("others have their turn, as if nothing more could be sent")
        if self._leaves:
            self._leave()
        else:
            self._idle = not self._received
            self.deadline += (_IDLE_SECONDS if self._idle else _HEAD_SECONDS) - _SILENCE

    def _leave(self) -> None:
        """Say that no answer comes any more, and pass over what does."""
        self._received, self._lingers = b"", True
        self.deadline = time.monotonic() + _LINGER_SECONDS
        with contextlib.suppress(OSError):  # TLS: it waits to be told the same
            if self._tls is None:
                self._socket.shutdown(socket.SHUT_WR)
            else:
                self._tls.unwrap()


class _Body(RawIOBase):
    """A body, for the application to read as a file, best with ``readinto``."""

    def __init__(
        self, connection: Connection, received: memoryview, length: int, expects_continue: bool
    ):
        self._connection, self._received = connection, received
        self._left, self._expects_continue = length, expects_continue

    @property
    def is_read(self) -> bool:
        """Whether nothing of it is left."""
        return self._left == 0

    @property
    def is_to_come(self) -> bool:
        """Whether some of it has not been received."""
        return self._left > len(self._received)

    def readable(self) -> bool:
        """Return True: RawIOBase reads from what says so."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill some of a buffer; 0 at the end, also where a body ends too early."""
        view = memoryview(buffer).cast("B")[: self._left]
        if n := min(len(view), len(self._received)):
            view[:n], self._received = self._received[:n], self._received[n:]
        elif view:
            if self._expects_continue:
                self._expects_continue = False
                self._connection.invite()
            n = self._connection.receive(view)
        self._left -= n
        return n
