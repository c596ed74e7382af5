"""Process: the program of the server process, ``python -m sparkdist.server.process FD FOLDER...``.

FD is one end of a socket pair; the driver has the other one.  Over it come the setup and then
commands, as pickles: the driver is trusted, and nobody else can reach a socket pair.  When the
driver is gone, however it ended, the pair is at its end, and so is this process; the folders,
which the driver would have removed, go with it.
"""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server import MTServer

from sparkdist.server.setup import Service, Startable

__all__ = ["main"]

logger = logging.getLogger(__name__)

#: Threads that answer; one is taken by each worker that waits.  They are started when needed.
_THREADS = 256
#: A client has so long to send its headers.  Dripping ones are dropped; bodies of clients without
#: the token are not read at all.
_HEADER_MILLISECONDS = 10_000


class _InThread(MTServer):
    """Granian with its one worker in a thread of this process, which holds the state.

    Granian keeps this kind for Python without a GIL, and its ordinary kind serves from a second
    process.  With a GIL the same code works; what is lost is only parallel Python, and here a
    lock would keep that away anyway.
    """

    def _check_gil(self) -> None:
        return


def _end_without_driver(leftovers: Sequence[Path]) -> NoReturn:
    """End, with the folders that the driver would have removed."""
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _say(connection: Connection, answer: tuple[Any, ...], leftovers: Sequence[Path]) -> None:
    """Answer the driver, who may have been killed while the command was carried out."""
    try:
        connection.send_bytes(pickle.dumps(answer))
    except OSError:
        _end_without_driver(leftovers)


def hear(connection: Connection, leftovers: Sequence[Path]) -> Any:
    """Return what the driver says next; when it is gone nobody is left to serve."""
    try:
        said = connection.recv_bytes()
    except (EOFError, OSError):
        _end_without_driver(leftovers)
    return pickle.loads(said)  # noqa: S301  # the driver's own


def obey(connection: Connection, service: Service, leftovers: Sequence[Path]) -> None:
    """Carry out the driver's commands until it says stop, or is gone."""
    while True:
        number, name, arguments = hear(connection, leftovers)
        if name == "stop":
            _stop(connection, service, leftovers)
        try:
            answer = number, True, service.commands[name](*arguments)
        except Exception as error:
            logger.exception("command %s failed", name)
            answer = number, False, repr(error)
        _say(connection, answer, leftovers)


def _stop(connection: Connection, service: Service, leftovers: Sequence[Path]) -> None:
    """End: no new waiting, a last checkpoint of all that was acknowledged, exit status 0."""
    answer: tuple[bool, str | None] = True, None
    try:
        service.drain()
    except Exception as error:
        answer = False, repr(error)
    _say(connection, answer, leftovers)
    logging.shutdown()
    # A thread that waits for a body that never comes must not hold the end up.
    os._exit(0)


def _in_thread(work: Callable[..., None], *arguments: Any) -> None:
    threading.Thread(target=work, args=arguments, name=work.__name__).start()


def _terminate(service: Service) -> None:
    """End on a signal; a disk that fails is told by the status, and does not hold the end up."""
    try:
        service.drain()
    except Exception:
        logger.exception("the last checkpoint could not be written")
        os._exit(1)
    os._exit(0)


def main(descriptor: int, *leftovers: Path) -> None:
    """Serve until the driver says stop, or is gone."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    connection = Connection(descriptor)
    setup: Startable = hear(connection, leftovers)
    service = setup.service()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on the driver's terminal is the driver's
    server = _InThread(
        "sparkdist",
        address=setup.host,
        port=setup.port,
        interface=Interfaces.WSGI,
        blocking_threads=_THREADS,
        backlog=1024,
        backpressure=1024,
        http=HTTPModes.http1,
        http1_settings=HTTP1Settings(header_read_timeout=_HEADER_MILLISECONDS),
        log_level=LogLevels.warning,
        ssl_cert=setup.certificate,
        ssl_key=setup.key,
    )

    @server.on_startup
    def listen_to_the_driver() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda *_: _in_thread(_terminate, service))
        _in_thread(obey, connection, service, leftovers)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        server.serve(target_loader=lambda: service.app, wrap_loader=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(Path, sys.argv[2:]))
