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
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

from sparkdist.server.http import HttpServer
from sparkdist.server.setup import Service, Startable

__all__ = ["main"]

logger = logging.getLogger(__name__)

#: Threads that answer; one is taken by each worker that waits.  They are started when needed.
_THREADS = 1024


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
    # The thread that accepts connections never returns.
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
    server = HttpServer(
        service.app,
        setup.host,
        setup.port,
        threads=_THREADS,
        certificate=setup.certificate,
        key=setup.key,
    )
    signal.signal(signal.SIGTERM, lambda *_: _in_thread(_terminate, service))
    _in_thread(obey, connection, service, leftovers)
    server.serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), *map(Path, sys.argv[2:]))
