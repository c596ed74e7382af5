"""Seat: the server of resident workers, started while other work is done."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from pyspark import SparkContext
from pyspark.cloudpickle import dumps

from sparkdist.errors import InvalidCall
from sparkdist.server.pass_setup import PassSetup
from sparkdist.server.supervisor import Supervisor, reserve_port
from sparkdist.spark.network import ANY_PORT, bind_host, driver_host, encryption_of, hosts_of

__all__ = ["Seat"]

#: Starts of the server after a death, for as long as the workers stay.
_RESTARTS = 10
_dumps: Callable[[Any], bytes] = dumps


class Seat:
    """A server process on an address that executors know; it takes 0.4 s to start.

    Parameters
    ----------
    context
        Says where the driver is.
    idle
        Seconds without a pass after which the server sends its workers home.
    messages
        Type of vectors and gradients on the wire.
    ports
        The first and the last of those that it may have.

    Raises
    ------
    InvalidCall
        If Spark is set to encrypt what this server would not, or all ports are taken.
    """

    def __init__(
        self,
        context: SparkContext,
        idle: float,
        messages: str = "<f8",
        ports: tuple[int, int] = ANY_PORT,
    ):
        host = driver_host(context)
        if found := encryption_of(context.getConf(), host):
            problem = f"{', '.join(found)} is set, which its port would bypass"
            raise InvalidCall("engine='resident'", [f"{problem}; engine='aggregate' does not"])
        with ExitStack() as stack:
            held = stack.enter_context(reserve_port(bind_host(context, host), ports))
            bound, port = held.getsockname()[:2]
            self.where, self.token = (host, port), secrets.token_urlsafe(32)
            hosts = hosts_of(host, bound, port)
            self._setup = PassSetup(idle, bound, port, hosts, self.token, messages)
            self._stack = stack.pop_all()
        self._server: Supervisor | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._start, daemon=True, name="sparkdist seat")
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether the process has started, or failed to."""
        return not self._thread.is_alive()

    @property
    def server(self) -> Supervisor:
        """The process, when it has started.

        Raises
        ------
        ServerDied
            If it did not start.
        """
        self._thread.join()
        if self._server is None:
            assert self._error is not None
            raise self._error
        return self._server

    def close(self) -> None:
        """Stop the server."""
        self._thread.join()
        self._stack.close()

    def __enter__(self) -> Seat:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self) -> None:
        try:
            self._server = Supervisor(self._setup, _dumps, _RESTARTS)
            self._stack.callback(self._server.stop)
        except BaseException as error:
            self._error = error
