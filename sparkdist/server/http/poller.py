"""Poller: waiting for many sockets in many threads, where each socket is told to one of them."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections import deque
from queue import SimpleQueue

__all__ = ["PortablePoller", "Poller"]


class PortablePoller:
    """Sockets by their descriptors; one that is told is not told again until it is asked for.

    All methods may be called from any thread at any time; a socket that is closed is forgotten, or
    told once more.  Here one thread polls for all; what others ask for they leave in a queue, and
    ring.

    Source: Leader/Followers, as in :mod:`sparkdist.server.http.server`.
    """

    def __init__(self) -> None:
        self._poll, self._leader = select.poll(), threading.Lock()
        self._ready: deque[int] = deque()
        self._asked: SimpleQueue[tuple[int, int]] = SimpleQueue()
        self._ear, self._bell = os.pipe()  # as long as the process: nobody closes them
        os.set_blocking(self._bell, False)
        self._poll.register(self._ear, select.POLLIN)

    def add(self, descriptor: int) -> None:
        """Wait for a new socket to have something to read."""
        self.rearm(descriptor, select.POLLIN)

    def rearm(self, descriptor: int, event: int) -> None:
        """Wait once more, for ``select.POLLIN`` or ``select.POLLOUT``."""
        self._asked.put((descriptor, event))
        with contextlib.suppress(BlockingIOError):  # it rings loud enough
            os.write(self._bell, b"!")

    def wait(self) -> int:
        """Return one that is ready, as soon as there is one."""
        with self._leader:
            while not self._ready:
                for descriptor, _ in self._poll.poll():
                    if descriptor == self._ear:
                        os.read(self._ear, 4096)  # before the queue is read: who comes later rings
                    else:
                        self._poll.unregister(descriptor)
                        self._ready.append(descriptor)
                while not self._asked.empty():
                    self._poll.register(*self._asked.get())
            return self._ready.popleft()


if sys.platform == "linux":

    class Poller:
        """The same by epoll: the kernel wakes one thread for each socket that is ready."""

        def __init__(self) -> None:
            self._epoll = select.epoll()

        def add(self, descriptor: int) -> None:
            """Wait for a new socket to have something to read."""
            self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLONESHOT)

        def rearm(self, descriptor: int, event: int) -> None:
            """Wait once more, for ``select.POLLIN`` or ``select.POLLOUT``."""
            self._epoll.modify(descriptor, event | select.EPOLLONESHOT)

        def wait(self) -> int:
            """Return one that is ready, as soon as there is one."""
            while True:
                for descriptor, _ in self._epoll.poll(maxevents=1):
                    return descriptor

else:
    Poller = PortablePoller
