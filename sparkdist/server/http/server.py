"""Server: a listening socket, connections that wait, and the threads that answer."""

from __future__ import annotations

import contextlib
import logging
import resource
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sparkdist.server.http.answer import Application
from sparkdist.server.http.connection import Connection
from sparkdist.server.http.poller import Poller

__all__ = ["HttpServer"]

logger = logging.getLogger(__name__)

#: Between looks for connections whose time is over.
_LOOK_SECONDS = 1.0
_BACKLOG = 1024
#: Descriptors that are asked for, the second where the first are too many (macOS), and those of
#: them that are left for files.
_MOST_FILES, _FILES = (65536, 10240), 64


class HttpServer:
    """Serves a WSGI application over HTTP/1.1, or over TLS.

    Connections without a whole head of a request wait at one poll of the kernel.  All threads that
    are free wait there too, and the kernel wakes one of them for each connection that has something
    to read: it reads, asks the application and answers, with no hand-over between.  So a connection
    that is silent, drips its head or does not read its answers takes no thread; a request that is
    being answered takes one, of at most ``threads``, which are started as they are needed.

    Parameters
    ----------
    app
        Gets its body from ``wsgi.input``, whose ``readinto`` receives right into the buffer that
        it is given; its answer may be of anything that has a buffer, which is sent from where it is
        and may not change.
    host, port
        Where to listen, beside whoever has reserved the port with SO_REUSEPORT.
    threads
        Requests that are answered at the same time.
    certificate, key
        PEM files for TLS.

    Raises
    ------
    OSError
        If it cannot listen there, or the files cannot be read.

    Source: the threads' turns are Leader/Followers of Schmidt, Stal, Rohnert and Buschmann,
    Pattern-Oriented Software Architecture 2 (2000), with the kernel's queue in the leader's place.
    """

    def __init__(
        self,
        app: Application,
        host: str,
        port: int,
        *,
        threads: int,
        certificate: Path | None = None,
        key: Path | None = None,
    ):
        self._app, self._tls = app, None
        if certificate is not None:
            self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self._tls.load_cert_chain(certificate, key)
        self._environ = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http" if self._tls is None else "https",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        self._listening = socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, reuse_port=True
        )
        self._poller = Poller()
        # Each thing that is done to these two is one step, which needs no lock to be one.
        self._waiting: dict[int, Connection] = {}  # by descriptor; in no thread's hands
        self._asking: set[int] = set()  # threads that are not free, however many connections drip
        self._threads, self._started, self._starting = threads, 0, threading.Lock()

    def serve(self) -> None:
        """Serve for ever."""
        self._start_thread()
        most, looked = _most_connections(), time.monotonic()
        self._listening.settimeout(_LOOK_SECONDS)
        while True:
            if len(self._waiting) + len(self._asking) < most:
                self._accept()
            else:
                time.sleep(_LOOK_SECONDS)
            if (now := time.monotonic()) - looked >= _LOOK_SECONDS:
                looked = now
                self._close_late_ones(now)

    def _accept(self) -> None:
        try:
            connected, client = self._listening.accept()
        except TimeoutError:
            return
        except OSError as error:  # no descriptor is left, or the client has gone again
            logger.warning("a connection could not be accepted: %s", error)
            time.sleep(0.01)
            return
        descriptor = connected.fileno()
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                connected = self._tls.wrap_socket(
                    connected, server_side=True, do_handshake_on_connect=False
                )
            # macOS gives no address of a client that has gone again.
            environ = {**self._environ, "REMOTE_ADDR": client[0] if client else ""}
            self._waiting[descriptor] = Connection(connected, environ)
            self._poller.add(descriptor)
        except OSError as error:
            logger.warning("a connection could not be taken: %s", error)
            self._waiting.pop(descriptor, None)
            connected.close()

    def _close_late_ones(self, now: float) -> None:
        for descriptor, one in self._waiting.copy().items():
            if one.deadline < now and self._waiting.pop(descriptor, None) is one:
                one.close()

    def _start_thread(self) -> None:
        """Start a thread if none is free, and there may be one more."""
        with self._starting:
            if len(self._asking) < self._started or self._started == self._threads:
                return
            try:
                threading.Thread(target=self._work, name="sparkdist http", daemon=True).start()
                self._started += 1
            except RuntimeError as error:  # the next request tries again
                logger.error("no thread could be started beside %s: %s", self._started, error)

    def _work(self) -> None:
        while True:
            descriptor = self._poller.wait()
            # None: it was closed as late since.  If its number is another one's by now, that one
            # has a turn too many, in which it finds nothing.
            if one := self._waiting.pop(descriptor, None):
                event = self._turn(one)
                self._asking.discard(threading.get_ident())
                if not event:
                    one.close()
                    continue
                self._waiting[descriptor] = one  # before the next line: it may be told at once
                with contextlib.suppress(OSError):  # closed as late, since the line above
                    self._poller.rearm(descriptor, event)

    def _busy_app(self, environ: dict[str, Any], start_response: Any) -> Iterable[Any]:
        """Ask the application, which may take its time: somebody must be left at the poll."""
        self._asking.add(threading.get_ident())
        if len(self._asking) >= self._started:
            self._start_thread()
        return self._app(environ, start_response)

    def _turn(self, one: Connection) -> int:
        try:
            return one.on_ready(self._busy_app)
        except OSError as error:
            logger.debug("a connection ended: %s", error)
        except Exception:
            logger.exception("a connection failed")
        return 0


def _most_connections() -> int:
    """How many descriptors this process may have for connections, once it has asked for more."""
    for wanted in _MOST_FILES:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            with contextlib.suppress(OSError, ValueError):  # not permitted here
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (_MOST_FILES[0] if soft == resource.RLIM_INFINITY else soft) - _FILES
