"""Supervisor: the driver's side of the server process; starts it, talks to it, starts it again."""

from __future__ import annotations

import dataclasses
import errno
import http.client
import logging
import os
import pickle
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sparkdist.errors import InvalidCall, ServerDied, ServerError
from sparkdist.server.setup import Startable

__all__ = ["Supervisor", "reserve_port"]

logger = logging.getLogger(__name__)

_PROGRAM = (sys.executable, "-m", "sparkdist.server.process")
_START_SECONDS = 60.0
_STOP_SECONDS = 10.0
#: Between looks at the process, and how often in a row it may fail to say that it is alive.
_LOOK_SECONDS, _LOOKS = 2.0, 5


def reserve_port(host: str, ports: tuple[int, int] = (0, 0)) -> socket.socket:
    """Bind the first free port of a range, without listening: it stays ours between restarts.

    ``ports`` are the first and the last; of (0, 0) the system chooses one.

    Raises
    ------
    InvalidCall
        If all of them are taken, or this user may have none of them.
    """
    first, last = ports
    for port in range(first, last + 1):
        try:
            return _bind(host, port)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
            why = error.strerror
    which = f"port {first} of {host}" if first == last else f"every port of {host}:{first}-{last}"
    cure = "give another one, a range port=(first, last), or 0 for any that is free"
    raise InvalidCall("the model server", [f"{which} cannot be had ({why}): {cure}"])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]
    if port:
        # SO_REUSEPORT alone would let us into the port of another server of this user.  Without it
        # Linux shows whose it is, and SO_REUSEADDR overlooks connections that are over.
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    held = socket.socket(family, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        held.bind((host, port))
    except OSError:
        held.close()
        raise
    return held


class Supervisor:
    """Runs the server process; when it dies, starts it again on the same port, from a checkpoint.

    Parameters
    ----------
    setup
        What the process is started from.
    dumps
        Pickles what goes to it, the user's functions included.
    restarts
        How many times it may be started again; without a folder for checkpoints, never.
    leftovers
        Folders that the driver removes in the end; if it is killed, the process does.
    """

    def __init__(
        self,
        setup: Startable,
        dumps: Callable[[Any], bytes],
        restarts: int,
        leftovers: Sequence[Path] = (),
    ):
        self._setup: Any = setup
        self._dumps, self._left = dumps, 0 if setup.again() is None else restarts
        self._allowed, self._asked = self._left, 0
        self._speaking, self._stopping = threading.RLock(), threading.Event()
        self._folder = Path(tempfile.mkdtemp(prefix="sparkdist-server-"))
        self._leftovers = [*leftovers, self._folder]
        self._log = self._folder / "server.log"
        self.restarts = 0
        self.died: ServerDied | None = None
        self._start()
        self._watcher = threading.Thread(target=self._watch, daemon=True, name="sparkdist watcher")
        self._watcher.start()

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def begin(self, run: str, n_workers: int, plan: str = "", state_bytes: int = 0) -> None:
        """Open a run; a server that is started again goes on with it."""
        self._remember(run=run, n_workers=n_workers, plan=plan, state_bytes=state_bytes)
        self.ask("begin", run, n_workers, plan, state_bytes)

    def begin_passes(self, run: str, size: int, partitions: Sequence[int]) -> None:
        """Open a run of a resident job: vectors of at most ``size``, portions of ``partitions``."""
        self._remember(run=run, size=size, partitions=partitions)
        self.ask("begin", run, size, partitions)

    def use(self, rule: Any, *, keep: bool = False) -> None:
        """Change how pushes are applied, from the next one on; ``keep`` the updater's state."""
        self._remember(rule=rule)
        self.ask("use", rule, keep)

    def _remember(self, **changed: Any) -> None:
        """Change what a server that is started again is started from.

        The lock is let go before the server is asked: it may have to be started again first.
        """
        with self._speaking:
            self._setup = dataclasses.replace(self._setup, **changed)

    def ask(self, name: str, *arguments: Any) -> Any:
        """Have a command carried out; waits while the server is being started again.

        Raises
        ------
        ServerDied
            If it died for the last time.
        ServerError
            If the command fails there.
        """
        deadline = time.monotonic() + 2 * _START_SECONDS
        while time.monotonic() < deadline:
            if self.died is not None:
                raise self.died
            try:
                with self._speaking:
                    done, answer = self._exchange(name, arguments)
            except (EOFError, OSError):
                if self._stopping.is_set():
                    raise ServerError("the model server was stopped") from None
                time.sleep(0.1)
                continue
            if not done:
                raise ServerError(f"the model server could not {name}: {answer}")
            return answer
        raise ServerError(f"the model server did not {name} in time")

    def _exchange(self, name: str, arguments: tuple[Any, ...]) -> tuple[bool, Any]:
        """Send a command and read its answer; those of commands that Ctrl-C cut off are left."""
        self._asked += 1
        asked = self._asked
        # Code goes by value; all else is plain data, which pickle writes in a quarter of the time.
        dumps = self._dumps if name == "use" else pickle.dumps
        self._connection.send_bytes(dumps((asked, name, arguments)))
        while True:
            answered, done, answer = pickle.loads(self._connection.recv_bytes())  # noqa: S301
            if answered == asked:
                return done, answer

    def stop(self) -> None:
        """End the process: the last checkpoint is written first; nothing of it stays behind."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        # The watcher may be starting it again: it gives that up, and lets go of the process.
        free = self._speaking.acquire(timeout=_STOP_SECONDS)
        try:
            if not free:  # a command that is never answered
                self._process.kill()
            elif self.died is None:
                self._connection.send_bytes(self._dumps((0, "stop", ())))
            self._process.wait(_STOP_SECONDS)
        except (OSError, subprocess.TimeoutExpired):
            self._process.kill()
        finally:
            if free:
                self._speaking.release()
            self._process.wait()
            self._connection.close()
            self._watcher.join(_STOP_SECONDS)
            shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Supervisor:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def _start(self) -> None:
        mine, theirs = Pipe()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment.setdefault("OMP_NUM_THREADS", "1")
        with open(self._log, "ab") as log:
            # The setup, with the token in it, goes over the pair and not into the arguments.
            self._process = subprocess.Popen(
                [*_PROGRAM, str(theirs.fileno()), *map(str, self._leftovers)],
                pass_fds=[theirs.fileno()],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C on the terminal is for the driver alone
            )
        theirs.close()
        self._connection: Connection = mine
        try:
            mine.send_bytes(self._dumps(self._setup))
            self._wait_until_it_answers()
        except BaseException:
            self._process.kill()
            self._process.wait()
            mine.close()
            raise

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._alive():
            ended = self._process.poll() is not None or self._stopping.is_set()
            if ended or time.monotonic() > deadline:
                raise ServerDied(f"the model server did not start:\n{self._tail()}")
            time.sleep(0.02)

    def _alive(self, seconds: float = 1.0) -> bool:
        setup = self._setup
        host, port = setup.host, setup.port
        connection: http.client.HTTPConnection
        if setup.certificate is None:
            connection = http.client.HTTPConnection(host, port, timeout=seconds)
        else:
            # Only whether it lives: that it is the right one the workers check.
            context = ssl._create_unverified_context()
            connection = http.client.HTTPSConnection(host, port, timeout=seconds, context=context)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _watch(self) -> None:
        """Look after the process until it is stopped, or has died once too often."""
        silent = 0
        while not self._stopping.is_set():
            try:
                self._process.wait(_LOOK_SECONDS)
            except subprocess.TimeoutExpired:
                silent = 0 if self._alive() else silent + 1
                if silent < _LOOKS:
                    continue
                logger.error("the model server does not answer any more; it is killed")
                self._process.kill()
                self._process.wait()
            silent = 0
            if self._stopping.is_set() or not self._start_again():
                return

    def _start_again(self) -> bool:
        status = self._process.returncode
        while self._left and not self._stopping.is_set():
            self._left -= 1
            self.restarts += 1
            logger.warning(
                "the model server died (status %s); it is started again from its last checkpoint",
                status,
            )
            self._setup = self._setup.again()
            try:
                with self._speaking:
                    self._connection.close()
                    self._start()
                return True
            except (ServerDied, OSError) as error:
                logger.error("%s", error)
        if self._stopping.is_set():
            return False
        if self._setup.again() is None:
            cure = "it had no checkpoints to start again from: checkpoint='interval' gives it some"
        else:
            cure = f"it had been started again {self._allowed} times, which is what restarts allows"
        self.died = ServerDied(
            f"the model server died (status {status}); {cure}. Its last words:\n{self._tail()}"
        )
        return False

    def _tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(lines[-20:])
